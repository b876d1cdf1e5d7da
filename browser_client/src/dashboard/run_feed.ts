/** Follows a run at the gateway: finds the newest one, and keeps its view up to date from Server-Sent Events. */
import { EventSource } from 'eventsource';
import { CheckError, list, optional, parseJson, record, text } from '../words/checks';
import { NAME } from '../words/protocol';
import { foldEvent, foldProgress, newRunView, type RunView } from './run_view';

const LOOK_AGAIN_MS = 3_000;
const LIVE: readonly RunView['status'][] = ['waiting', 'labelling', 'running'];
const runs = list(record({ run: text(NAME) }));
const anything = (value: unknown): unknown => value;
/** The feed does not say when the broker took an event; when it was made is close to that. */
const made = record({ time: optional(text()) });

export class RunFeed {
  view: RunView | null = null;
  problem = '';
  /** Whether the gateway has listed its runs yet. */
  answered = false;
  #source: EventSource | null = null;
  #lookAt = 0;
  #last = '0';
  #watched = true;

  /** `gateway` is its base URL, ending in a slash. */
  constructor(
    private readonly gateway: string,
    private readonly fetchFrom: typeof fetch,
    private readonly onChange: () => void,
  ) {}

  /** Looks for a run while none goes on, and mends a broken feed; call it now and then. */
  tick(): void {
    if (!this.#watched || performance.now() < this.#lookAt) return;
    this.#lookAt = performance.now() + LOOK_AGAIN_MS;
    if (this.view !== null && this.#source === null) this.#listen(this.view);
    if (this.view !== null && LIVE.includes(this.view.status)) return;
    void this.#look().catch((error: unknown) => {
      this.problem = `the gateway does not list its runs: ${error instanceof Error ? error.message : String(error)}`;
      this.onChange();
    });
  }

  /** Whether anybody looks: a feed takes one of the few connections that all tabs of a browser share. */
  watched(watched: boolean): void {
    this.#watched = watched;
    this.#lookAt = 0;
    if (!watched) this.#close();
  }

  /** Shows this run from now on, from its first event. */
  follow(run: string): void {
    if (this.view?.run === run) return;
    this.#close();
    this.view = newRunView(run);
    this.#last = '0';
    if (this.#watched) this.#listen(this.view);
    this.onChange();
  }

  /** Goes on after the last event that was taken in. */
  #listen(view: RunView): void {
    const url = new URL(`runs/${view.run}/events`, this.gateway);
    url.searchParams.set('since', this.#last);
    const source = new EventSource(url, { fetch: this.fetchFrom });
    const taking = (fold: (body: unknown, sequence: number) => void) => (message: MessageEvent<string>) => {
      try {
        fold(parseJson(message.data, anything, 'message'), Number(message.lastEventId));
        if (message.lastEventId !== '') this.#last = message.lastEventId;
        this.problem = '';
      } catch (error) {
        if (!(error instanceof CheckError)) throw error;
        this.problem = error.message;
      }
      this.onChange();
    };
    source.onmessage = taking((event, sequence) => {
      foldEvent(view, { sequence, time: made(event, 'event').time ?? '', event });
    });
    source.addEventListener(
      'progress',
      taking((body) => foldProgress(view, body)),
    );
    source.onerror = () => {
      // A browser comes back from a cut by itself, but not from an answer that is no feed.
      if (source.readyState === EventSource.CLOSED) this.#close();
    };
    this.#source = source;
  }

  #close(): void {
    this.#source?.close();
    this.#source = null;
  }

  async #look(): Promise<void> {
    const response = await this.fetchFrom(new URL('runs', this.gateway), { signal: AbortSignal.timeout(LOOK_AGAIN_MS) });
    if ([401, 403, 429].includes(response.status)) {
      // Asking again would only count as guessing.
      this.#lookAt = Infinity;
      this.problem = `${(await response.text()).trim()}: it belongs at the end of this page's address, as #token=…`;
      this.onChange();
      return;
    }
    if (!response.ok) throw new Error(`status ${response.status}`);
    const newest = parseJson(await response.text(), runs, 'runs').at(-1);
    this.problem = '';
    this.answered = true;
    if (newest !== undefined) this.follow(newest.run);
    this.onChange();
  }
}
