/**
 * What a watcher wants to know of a run: a fold over its events and its live progress, free of the DOM. The twin of
 * agents/core/views/run.py; tests/vectors/run_views.json holds what both must make of the same events.
 */
import { type EngineKind, kindOf } from './engine_kind';
import { type DataOf, type KnownEvent, type Progress, progressData, readEvent, type Score } from './event_data';
import { foldRound, newRoundView, noteInRound, roundJson, type RoundView } from './round_view';

const LATEST = 6;

export interface ClientView {
  readonly client: string;
  /** What it trains with, known from its first update on. */
  engine: string;
  kind: EngineKind;
  updates: number;
  last_at: string | null;
  progress: Progress | null;
}

/** What the labeller did so far; `dropped` counts the images without a label by reason. */
export interface LabelsView {
  readonly provider: string;
  readonly model: string | null;
  last_at: string;
  images: number;
  labelled_images: number;
  readonly dropped: Record<string, number>;
  prompt_tokens: number;
  completion_tokens: number;
}

export interface RunView {
  readonly run: string;
  /** The last event that was taken in. */
  sequence: number;
  status: 'waiting' | 'labelling' | 'running' | 'completed' | 'failed' | 'cancelled';
  reason: string;
  seed: number | null;
  users: number;
  rounds_planned: number;
  base_model: string | null;
  started_at: string | null;
  last_at: string | null;
  finished_at: string | null;
  base: Score | null;
  labels: LabelsView | null;
  /** When each user's images had labels. */
  readonly labelled: Map<string, string>;
  readonly clients: Map<string, ClientView>;
  /** Round and user of the newest updates, newest first. */
  readonly latest: { readonly round: number; readonly user: string }[];
  readonly rounds: Map<number, RoundView>;
}

/** An event with its place in the stream and the time of it there. */
export interface StoredEvent {
  readonly sequence: number;
  readonly time: string;
  /** A CloudEvent. */
  readonly event: unknown;
}

export function newRunView(run: string): RunView {
  return {
    run,
    sequence: 0,
    status: 'waiting',
    reason: '',
    seed: null,
    users: 0,
    rounds_planned: 0,
    base_model: null,
    started_at: null,
    last_at: null,
    finished_at: null,
    base: null,
    labels: null,
    labelled: new Map(),
    clients: new Map(),
    latest: [],
    rounds: new Map(),
  };
}

/** The round that was planned last. */
export function currentRound(view: RunView): RoundView | null {
  return [...view.rounds.values()].filter((one) => one.planned_at !== null).at(-1) ?? null;
}

/** Accuracy on the held-out images by round; round 0 is the base model. */
export function accuracyByRound(view: RunView): Map<number, number> {
  const found = new Map<number, number>();
  if (view.base !== null) found.set(0, view.base.accuracy);
  for (const one of view.rounds.values()) if (one.score !== null) found.set(one.round, one.score.accuracy);
  return found;
}

/**
 * Takes one event in, and says whether it changed anything. A view begins with `run.started` and ends with
 * `run.finished`; what comes outside of that, belongs to another run or to a round that the run does not have, is not
 * newer than the last event or of an unknown type changes nothing. Throws CheckError for a damaged event.
 */
export function foldEvent(view: RunView, { sequence, time, event: body }: StoredEvent): boolean {
  const event = readEvent(body);
  if (event === null || !awaits(view, event) || sequence <= view.sequence) return false;
  view.sequence = sequence;
  view.last_at = time;
  switch (event.type) {
    case 'fedbus.run.started': {
      const { users, config, base_model } = event.data;
      Object.assign(view, { users, rounds_planned: config.rounds, seed: config.seed, base_model: base_model.sha256 });
      Object.assign(view, { started_at: time, status: 'labelling' });
      break;
    }
    case 'fedbus.run.finished':
      Object.assign(view, { status: event.data.status, reason: event.data.reason, finished_at: time });
      break;
    case 'fedbus.images.labelled':
      labelled(view, event.data, time);
      break;
    case 'fedbus.model.evaluated':
      view.base ??= event.data.base;
      if (event.data.round > 0) foldRound(roundOf(view, event.data.round), event, sequence, time);
      break;
    default:
      inRound(view, event, sequence, time);
  }
  return true;
}

/** Takes live progress in, which is worth something while its task is still to be done. Throws CheckError. */
export function foldProgress(view: RunView, body: unknown): void {
  const progress = progressData(body, 'progress');
  const round = view.rounds.get(progress.round);
  if (progress.run !== view.run || view.finished_at !== null || round === undefined) return;
  if (noteInRound(round, progress)) clientOf(view, progress.client).progress = progress;
}

/** The view as JSON, as Python writes it. */
export function runJson(view: RunView): Record<string, unknown> {
  const clients = [...view.clients.values()].map((one) => ({
    ...one,
    progress: one.progress === null ? null : withoutNames(one.progress),
  }));
  const rounds = [...view.rounds.values()].sort((a, b) => a.round - b.round).map(roundJson);
  const users = [...view.labelled].map(([user, at]) => ({ user, at }));
  return { ...view, waiting: view.users - view.labelled.size, labelled: users, clients, rounds };
}

function withoutNames({ run: _, client: __, ...rest }: Progress): Omit<Progress, 'run' | 'client'> {
  return rest;
}

function awaits(view: RunView, { type, data }: KnownEvent): boolean {
  if (data.run !== view.run || view.finished_at !== null) return false;
  if (view.started_at === null || type === 'fedbus.run.started') {
    return view.started_at === null && type === 'fedbus.run.started';
  }
  if (!('round' in data)) return true;
  return data.round >= (type === 'fedbus.model.evaluated' ? 0 : 1) && data.round <= view.rounds_planned;
}

function roundOf(view: RunView, number: number): RoundView {
  const found = view.rounds.get(number) ?? newRoundView(number);
  view.rounds.set(number, found);
  return found;
}

function clientOf(view: RunView, name: string): ClientView {
  const found = view.clients.get(name) ?? { client: name, engine: '', kind: 'other' as const, updates: 0, last_at: null, progress: null };
  view.clients.set(name, found);
  return found;
}

function labelled(view: RunView, data: DataOf<'fedbus.images.labelled'>, time: string): void {
  if (view.labelled.has(data.user)) return;
  view.labelled.set(data.user, time);
  view.labels ??= {
    provider: data.provider,
    model: data.model,
    last_at: time,
    images: 0,
    labelled_images: 0,
    dropped: {},
    prompt_tokens: 0,
    completion_tokens: 0,
  };
  const { labels } = view;
  labels.last_at = time;
  labels.images += data.labels.length;
  labels.labelled_images += data.labels.filter((label) => label !== null).length;
  for (const { reason } of data.dropped) labels.dropped[reason] = (labels.dropped[reason] ?? 0) + 1;
  labels.prompt_tokens += data.prompt_tokens;
  labels.completion_tokens += data.completion_tokens;
}

function inRound(view: RunView, event: Parameters<typeof foldRound>[1], sequence: number, time: string): void {
  const round = roundOf(view, event.data.round);
  foldRound(round, event, sequence, time);
  switch (event.type) {
    case 'fedbus.round.planned':
      view.status = 'running';
      break;
    case 'fedbus.update.submitted': {
      const { client: name, engine, metrics, user } = event.data;
      const client = clientOf(view, name);
      const kind = metrics.platform ?? kindOf(engine);
      Object.assign(client, { engine, kind, last_at: time, updates: client.updates + 1 });
      if (round.sequences.get(user) !== sequence) break;
      view.latest.unshift({ round: round.round, user });
      view.latest.length = Math.min(view.latest.length, LATEST);
      break;
    }
    case 'fedbus.model.published':
    case 'fedbus.round.failed':
      for (const client of view.clients.values()) client.progress = null;
      break;
  }
}
