/** What a watcher wants to know of a run: a fold over its events and its live progress, free of the DOM. */
import { type Check, integer, list, literal, parseJson, real, record, text } from '../words/checks';

export type UserState = 'waiting' | 'working' | 'done';

export interface RoundView {
  readonly number: number;
  users: number;
  quorum: number;
  deadline: string;
  /** Users of the round by state, in the order of their assignment. */
  readonly states: Map<string, UserState>;
  /** Clients by the user that they work on. */
  readonly clients: Map<string, string>;
  submitted: number;
  rejected: number;
  mismatched: number;
  trained: number;
  /** Why the round closed or failed, or an empty text while it is open. */
  ended: string;
}

export interface Finished {
  readonly user: string;
  readonly client: string;
  readonly round: number;
  readonly mismatched: number;
  readonly images: number;
}

export interface RunView {
  readonly run: string;
  status: 'waiting' | 'labelling' | 'running' | 'completed' | 'failed' | 'cancelled';
  reason: string;
  users: number;
  rounds: number;
  labelled: number;
  /** Accuracy on the held-out images by round; round 0 is the base model. */
  readonly accuracy: Map<number, number>;
  round: RoundView | null;
  /** The latest updates, newest first. */
  readonly latest: Finished[];
}

const LATEST = 6;
const score = record({ accuracy: real });
const inRound = { round: integer(0) };
const ofUser = { ...inRound, user: text() };

/** What is taken from an event's data, by its type. */
const events = {
  'fedbus.run.started': record({ users: integer(1), config: record({ rounds: integer(1) }) }),
  'fedbus.images.labelled': record({ user: text() }),
  'fedbus.round.planned': record({ ...inRound, users: integer(1), quorum: integer(1), deadline: text() }),
  'fedbus.round.extended': record({ ...inRound, deadline: text() }),
  'fedbus.task.assigned': record(ofUser),
  'fedbus.update.submitted': record({
    ...ofUser,
    client: text(),
    metrics: record({
      predictions: list(integer(0)),
      mismatched_images: integer(0),
      trained_images: integer(0),
    }),
  }),
  'fedbus.update.rejected': record(inRound),
  'fedbus.round.closed': record({ ...inRound, reason: text() }),
  'fedbus.round.failed': record({ ...inRound, reason: text() }),
  'fedbus.model.evaluated': record({ ...inRound, base: score, updated: score }),
  'fedbus.run.finished': record({ status: text(/^(completed|failed|cancelled)$/), reason: text() }),
} satisfies Record<string, Check<unknown>>;

const progress = record({ ...ofUser, client: text() });
const typed = record({ type: text() });

export function newRunView(run: string): RunView {
  return {
    run,
    status: 'waiting',
    reason: '',
    users: 0,
    rounds: 0,
    labelled: 0,
    accuracy: new Map(),
    round: null,
    latest: [],
  };
}

/** Takes one event, a CloudEvent as JSON, into the view. Unknown types say nothing; throws CheckError for bad ones. */
export function foldEvent(view: RunView, body: string): void {
  const { type } = parseJson(body, typed, 'event');
  const data = <T>(check: Check<T>): T => parseJson(body, record({ type: literal(type), data: check }), type).data as T;
  switch (type) {
    case 'fedbus.run.started': {
      const { users, config } = data(events[type]);
      view.users = users;
      view.rounds = config.rounds;
      view.status = 'labelling';
      break;
    }
    case 'fedbus.images.labelled':
      view.labelled += 1;
      break;
    case 'fedbus.round.planned': {
      const { round, users, quorum, deadline } = data(events[type]);
      view.status = 'running';
      view.round = {
        number: round,
        users,
        quorum,
        deadline,
        states: new Map(),
        clients: new Map(),
        submitted: 0,
        rejected: 0,
        mismatched: 0,
        trained: 0,
        ended: '',
      };
      break;
    }
    case 'fedbus.round.extended': {
      const { round, deadline } = data(events[type]);
      if (view.round?.number === round) view.round.deadline = deadline;
      break;
    }
    case 'fedbus.task.assigned': {
      const { round, user } = data(events[type]);
      if (view.round?.number === round && !view.round.states.has(user)) view.round.states.set(user, 'waiting');
      break;
    }
    case 'fedbus.update.submitted':
      submitted(view, data(events[type]));
      break;
    case 'fedbus.update.rejected': {
      const { round } = data(events[type]);
      if (view.round?.number === round) view.round.rejected += 1;
      break;
    }
    case 'fedbus.round.closed':
    case 'fedbus.round.failed': {
      const { round, reason } = data(events[type]);
      if (view.round?.number === round) view.round.ended = reason;
      break;
    }
    case 'fedbus.model.evaluated': {
      const { round, base, updated } = data(events[type]);
      view.accuracy.set(0, base.accuracy);
      if (round > 0) view.accuracy.set(round, updated.accuracy);
      break;
    }
    case 'fedbus.run.finished': {
      const { status, reason } = data(events[type]);
      view.status = status as RunView['status'];
      view.reason = reason;
      break;
    }
  }
}

/** Takes one live progress message, JSON, into the view. */
export function foldProgress(view: RunView, body: string): void {
  const { round, user, client } = parseJson(body, progress, 'progress');
  if (view.round?.number !== round || view.round.states.get(user) === 'done') return;
  view.round.states.set(user, 'working');
  view.round.clients.set(user, client);
}

function submitted(view: RunView, data: ReturnType<(typeof events)['fedbus.update.submitted']>): void {
  const { round, user, client, metrics } = data;
  const current = view.round;
  if (current?.number === round && current.states.get(user) !== 'done') {
    current.states.set(user, 'done');
    current.submitted += 1;
    current.mismatched += metrics.mismatched_images;
    current.trained += metrics.trained_images;
  }
  view.latest.unshift({
    user,
    client,
    round,
    mismatched: metrics.mismatched_images,
    images: metrics.predictions.length,
  });
  view.latest.length = Math.min(view.latest.length, LATEST);
}
