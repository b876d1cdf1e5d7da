/** What the view of a run takes from each event's data, by the event's type, and from live progress. */
import { type Check, type Checked, integer, list, literal, optional, real, record, text } from '../words/checks';

const score = record({ accuracy: real, loss: real });
const ref = record({ sha256: text() });
const ofRun = { run: text() };
const inRound = { ...ofRun, round: integer(0) };
const ofUser = { ...inRound, user: text() };

export type Score = Checked<typeof score>;

/** The data with its type. */
function typed<const T extends string, D>(type: T, data: Check<D>) {
  return record({ type: literal(`fedbus.${type}`), data });
}

const checks = {
  'fedbus.run.started': typed(
    'run.started',
    record({
      ...ofRun,
      users: integer(1),
      base_model: ref,
      config: record({ rounds: integer(1), seed: integer(0) }),
    }),
  ),
  'fedbus.images.labelled': typed(
    'images.labelled',
    record({
      ...ofRun,
      user: text(),
      labels: list(optional(integer(0))),
      dropped: list(record({ reason: text() })),
      provider: text(),
      model: optional(text()),
      prompt_tokens: integer(0),
      completion_tokens: integer(0),
    }),
  ),
  'fedbus.round.started': typed('round.started', record(inRound)),
  'fedbus.round.planned': typed(
    'round.planned',
    record({
      ...inRound,
      users: integer(1),
      quorum: integer(1),
      base_model: ref,
      learning_rate: real,
      deadline: text(),
    }),
  ),
  'fedbus.task.assigned': typed('task.assigned', record(ofUser)),
  'fedbus.update.submitted': typed(
    'update.submitted',
    record({
      ...ofUser,
      base_model: text(),
      client: text(),
      engine: text(),
      metrics: record({
        predictions: list(integer(0)),
        mismatched_images: integer(0),
        trained_images: integer(0),
        predict_s: real,
        train_s: real,
        platform: optional(literal('browser', 'native')),
      }),
    }),
  ),
  'fedbus.update.rejected': typed(
    'update.rejected',
    record({ ...ofUser, attempt: text(), code: text(), reason: text(), client: text() }),
  ),
  'fedbus.round.extended': typed(
    'round.extended',
    record({ ...inRound, extension: integer(1), deadline: text() }),
  ),
  'fedbus.round.closed': typed(
    'round.closed',
    record({ ...inRound, reason: text(), missing: integer(0), through: integer(1) }),
  ),
  'fedbus.round.failed': typed('round.failed', record({ ...inRound, reason: text(), code: optional(text()) })),
  'fedbus.model.published': typed('model.published', record({ ...inRound, model: ref, strategy: text() })),
  'fedbus.model.evaluated': typed(
    'model.evaluated',
    record({ ...inRound, base: score, updated: score }),
  ),
  'fedbus.evaluation.failed': typed('evaluation.failed', record({ ...inRound, reason: text() })),
  'fedbus.run.finished': typed(
    'run.finished',
    record({ ...ofRun, status: text(/^(completed|failed|cancelled)$/), reason: text() }),
  ),
};

type Checks = typeof checks;
/** An event that the view knows. */
export type KnownEvent = { [T in keyof Checks]: Checked<Checks[T]> }[keyof Checks];
export type DataOf<T extends KnownEvent['type']> = Extract<KnownEvent, { type: T }>['data'];

const anyType = record({ type: text() });

/** The event, or null when its type is not one that the view knows; throws CheckError for a damaged one. */
export function readEvent(event: unknown): KnownEvent | null {
  const { type } = anyType(event, 'event');
  if (!Object.hasOwn(checks, type)) return null;
  const check: Check<KnownEvent> = checks[type as KnownEvent['type']];
  return check(event, type);
}

/** Live progress of one task. */
export const progressData = record({
  ...ofUser,
  client: text(),
  phase: text(),
  images_seen: integer(0),
  mismatched_images: integer(0),
  trained_images: integer(0),
  loss: optional(real),
});
export type Progress = Checked<typeof progressData>;
