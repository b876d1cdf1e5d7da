/** A worker that is made anew while it does not load: each has modules of its own, so that nothing failed for good. */
import { ATTEMPTS, pauseMs } from '../objects/patiently';

/** The part of Worker that is used, so that tests can run a fake one. */
export type WorkerLike = Pick<Worker, 'postMessage' | 'terminate' | 'onmessage' | 'onerror'>;

export class LastingWorker {
  #worker: WorkerLike;
  #attempt = 0;
  /** What was said to it before it said anything; null from then on. */
  #unheard: unknown[] | null = [];

  /** `onCrash` gets the browser's words for why it does not load, or failed later. */
  constructor(
    private readonly make: () => WorkerLike,
    private readonly onMessage: (data: unknown) => void,
    private readonly onCrash: (reason: string) => void,
    private readonly later: (work: () => void, ms: number) => void = (work, ms) => void setTimeout(work, ms),
  ) {
    this.#worker = this.#made();
  }

  post(message: unknown): void {
    this.#unheard?.push(message);
    this.#worker.postMessage(message);
  }

  #made(): WorkerLike {
    const worker = this.make();
    worker.onmessage = ({ data }: MessageEvent<unknown>) => {
      this.#unheard = null;
      this.onMessage(data);
    };
    worker.onerror = (error) => {
      if (this.#unheard === null || this.#attempt >= ATTEMPTS) {
        // Of a script that was not fetched the browser says nothing.
        this.onCrash(error.message || 'it did not load');
        return;
      }
      error.preventDefault();
      worker.onmessage = worker.onerror = null;
      worker.terminate();
      this.later(() => this.#again(), pauseMs(this.#attempt++));
    };
    return worker;
  }

  #again(): void {
    this.#worker = this.#made();
    for (const message of this.#unheard ?? []) this.#worker.postMessage(message);
  }
}
