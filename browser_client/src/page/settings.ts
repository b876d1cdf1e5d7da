/** What the page is told by its address: token, client name, gateway, threads, engine. */
import { NAME } from '../words/protocol';

const DEFAULT_THREADS = 2;

export interface Settings {
  /** Base URL of the gateway over HTTP, ending in a slash. */
  readonly gateway: string;
  readonly token: string;
  readonly client: string;
  readonly autostart: boolean;
  readonly threads: number;
  /** The name of the engine to train with; empty: the best that can be used. */
  readonly engine: string;
  readonly isolated: boolean;
}

/** The part of the browser that settings come from. */
export interface Surroundings {
  /** Address of the page, with query and hash. */
  readonly href: string;
  readonly storage: Pick<Storage, 'getItem' | 'setItem'>;
  readonly isolated: boolean;
  readonly processors: number;
  readonly random: () => number;
}

/**
 * Reads `#token=…` and `?client=…&gateway=…&threads=…&engine=…&autostart=1`. Token and client name are kept for
 * the tab's session, so that a reload is the same client. Threads need cross-origin isolation.
 */
export function readSettings(from: Surroundings): Settings {
  const page = new URL(from.href);
  const asked = page.searchParams;
  const token = new URLSearchParams(page.hash.slice(1)).get('token');
  if (token !== null) from.storage.setItem('fedbus.token', token);
  const processors = Math.max(1, from.processors);
  const threads = Number(asked.get('threads') ?? DEFAULT_THREADS);
  return {
    gateway: gatewayBase(asked.get('gateway'), page),
    token: token ?? from.storage.getItem('fedbus.token') ?? '',
    client: clientName(asked.get('client'), from),
    autostart: asked.get('autostart') === '1',
    threads: from.isolated && threads >= 1 ? Math.min(Math.floor(threads), processors) : 1,
    engine: asked.get('engine') ?? '',
    isolated: from.isolated,
  };
}

/** The WebSocket's address at a gateway. */
export function socketUrl(gateway: string): string {
  return new URL('ws', gateway).href.replace(/^http/, 'ws');
}

function gatewayBase(asked: string | null, page: URL): string {
  if (asked === null) return new URL('.', page.origin + page.pathname).href;
  const url = new URL(asked, page);
  return url.origin.replace(/^ws/, 'http') + url.pathname.replace(/\/ws\/?$/, '').replace(/\/*$/, '/');
}

function clientName(asked: string | null, from: Surroundings): string {
  const kept = asked ?? from.storage.getItem('fedbus.client');
  if (kept !== null && NAME.test(kept)) return kept;
  const drawn = `tab-${Math.floor(from.random() * 36 ** 6)
    .toString(36)
    .padStart(6, '0')}`;
  from.storage.setItem('fedbus.client', drawn);
  return drawn;
}
