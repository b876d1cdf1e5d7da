/** Tries again what a lost request made fail: the gateway comes back, and a page that lost one file would be of no use. */
export const ATTEMPTS = 6;
const FIRST_DELAY_MS = 250;

/** How long to wait after the `attempt`-th failure, which counts from 0. */
export function pauseMs(attempt: number): number {
  return FIRST_DELAY_MS * 2 ** attempt;
}

/** What `work` gives; throws what its last attempt threw. */
export async function patiently<T>(
  work: () => Promise<T>,
  sleep = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms)),
): Promise<T> {
  for (let attempt = 0; ; attempt++) {
    try {
      return await work();
    } catch (error) {
      if (attempt >= ATTEMPTS) throw error;
    }
    await sleep(pauseMs(attempt));
  }
}
