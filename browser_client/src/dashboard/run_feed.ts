/** Follows a run at the gateway: finds the newest one, and keeps its view up to date from Server-Sent Events. */
import { CheckError, list, parseJson, record, text } from '../checks';
import { NAME } from '../protocol';
import { foldEvent, foldProgress, newRunView, type RunView } from './run_view';

const LOOK_AGAIN_MS = 3_000;
const runs = list(record({ run: text(NAME) }));

export class RunFeed {
  view: RunView | null = null;
  problem = '';
  #source: EventSource | null = null;
  #lookAt = 0;

  /** `gateway` is its base URL, ending in a slash. */
  constructor(
    private readonly gateway: string,
    private readonly onChange: () => void,
  ) {}

  /** Looks for a run while none is followed; call it now and then. */
  tick(): void {
    if (performance.now() < this.#lookAt) return;
    this.#lookAt = performance.now() + LOOK_AGAIN_MS;
    void this.#look().catch((error: unknown) => {
      this.problem = `the gateway does not list its runs: ${error instanceof Error ? error.message : String(error)}`;
      this.onChange();
    });
  }

  /** Shows this run from now on, from its first event. */
  follow(run: string): void {
    if (this.view?.run === run) return;
    this.#source?.close();
    const view = newRunView(run);
    this.view = view;
    const source = new EventSource(new URL(`runs/${run}/events`, this.gateway));
    const taking = (fold: (view: RunView, body: string) => void) => (message: MessageEvent<string>) => {
      try {
        fold(view, message.data);
        this.problem = '';
      } catch (error) {
        if (!(error instanceof CheckError)) throw error;
        this.problem = error.message;
      }
      this.onChange();
    };
    source.onmessage = taking(foldEvent);
    source.addEventListener('progress', taking(foldProgress));
    this.#source = source;
    this.onChange();
  }

  async #look(): Promise<void> {
    const response = await fetch(new URL('runs', this.gateway), { signal: AbortSignal.timeout(LOOK_AGAIN_MS) });
    if (!response.ok) throw new Error(`status ${response.status}`);
    const newest = parseJson(await response.text(), runs, 'runs').at(-1);
    const over = this.view === null || !['waiting', 'labelling', 'running'].includes(this.view.status);
    if (newest !== undefined && over) this.follow(newest.run);
  }
}
