/**
 * One round as a watcher sees it: its times, its users' tasks and its model. The twin of agents/core/views/round.py,
 * with the rules of agents/core/rounds/state.py on which updates count.
 */
import { NO_FAULT } from '../words/protocol';
import type { KnownEvent, DataOf, Progress, Score } from './event_data';

const TASK_STATES = ['assigned', 'working', 'submitted', 'accepted', 'rejected', 'stale'] as const;
export type TaskState = (typeof TASK_STATES)[number];
export type Phase = 'asked' | 'open' | 'closed' | 'failed' | 'published' | 'evaluated';

/** One user's task. A submitted update counts unless something comes up until the round closes; then it is accepted. */
export interface TaskView {
  readonly user: string;
  state: TaskState;
  client: string;
  assigned_at: string | null;
  submitted_at: string | null;
  refused_at: string | null;
  code: string | null;
  reason: string;
  images: number;
  mismatched_images: number;
  trained_images: number;
  predict_s: number;
  train_s: number;
}

/** One round; its figures are those of the updates that count. */
export interface RoundView {
  readonly round: number;
  started_at: string | null;
  planned_at: string | null;
  readonly extended_at: string[];
  ended_at: string | null;
  published_at: string | null;
  evaluated_at: string | null;
  deadline: string | null;
  users: number;
  quorum: number;
  base_model: string | null;
  learning_rate: number | null;
  /** How many tasks are in each state. */
  readonly counts: Record<TaskState, number>;
  submitted: number;
  refused: number;
  rejections: number;
  mismatched_images: number;
  trained_images: number;
  /** Why no more updates count; empty while they do. */
  ended: string;
  failed: boolean;
  missing: number | null;
  model: string | null;
  strategy: string | null;
  score: Score | null;
  /** By user, in the order of their assignment. */
  readonly tasks: Map<string, TaskView>;
  /** The place of each user's update in the stream. */
  readonly sequences: Map<string, number>;
  /** Users whose update counted until the aggregator refused it. */
  readonly excluded: Set<string>;
}

type RoundEvent = Extract<KnownEvent, { data: { round: number } }>;

export function newRoundView(round: number): RoundView {
  return {
    round,
    started_at: null,
    planned_at: null,
    extended_at: [],
    ended_at: null,
    published_at: null,
    evaluated_at: null,
    deadline: null,
    users: 0,
    quorum: 0,
    base_model: null,
    learning_rate: null,
    counts: { assigned: 0, working: 0, submitted: 0, accepted: 0, rejected: 0, stale: 0 },
    submitted: 0,
    refused: 0,
    rejections: 0,
    mismatched_images: 0,
    trained_images: 0,
    ended: '',
    failed: false,
    missing: null,
    model: null,
    strategy: null,
    score: null,
    tasks: new Map(),
    sequences: new Map(),
    excluded: new Set(),
  };
}

export function phaseOf(view: RoundView): Phase {
  if (view.failed) return 'failed';
  if (view.score !== null) return 'evaluated';
  if (view.model !== null) return 'published';
  if (view.ended_at !== null) return 'closed';
  return view.planned_at !== null ? 'open' : 'asked';
}

/** Its update is part of the round's model, as far as is known now. */
export function counts(task: TaskView): boolean {
  return task.state === 'submitted' || task.state === 'accepted';
}

/** Takes one event of this round in. */
export function foldRound(view: RoundView, event: RoundEvent, sequence: number, time: string): void {
  switch (event.type) {
    case 'fedbus.round.started':
      view.started_at ??= time;
      break;
    case 'fedbus.round.planned': {
      if (view.planned_at !== null) break;
      const { users, quorum, deadline, learning_rate, base_model } = event.data;
      Object.assign(view, { users, quorum, deadline, learning_rate, base_model: base_model.sha256, planned_at: time });
      break;
    }
    case 'fedbus.task.assigned':
      taskOf(view, event.data.user).assigned_at ??= time;
      break;
    case 'fedbus.update.submitted':
      submitted(view, event.data, sequence, time);
      break;
    case 'fedbus.update.rejected':
      rejected(view, event.data, time);
      break;
    case 'fedbus.round.extended':
      if (!isOpen(view) || event.data.extension !== view.extended_at.length + 1) break;
      view.extended_at.push(time);
      view.deadline = event.data.deadline;
      break;
    case 'fedbus.round.closed':
      if (isOpen(view)) close(view, event.data, time);
      break;
    case 'fedbus.round.failed':
      // Once it is closed, only the strategy's failure can keep a round from its model.
      if (view.failed || view.model !== null || (view.ended_at !== null && !event.data.code)) break;
      Object.assign(view, { failed: true, ended: event.data.reason, ended_at: time });
      break;
    case 'fedbus.model.published':
      if (view.failed || view.model !== null) break;
      Object.assign(view, { model: event.data.model.sha256, strategy: event.data.strategy, published_at: time });
      break;
    case 'fedbus.model.evaluated':
      if (view.score !== null) break;
      Object.assign(view, { score: event.data.updated, evaluated_at: time });
      break;
  }
}

/** Takes live progress in; says whether it is about a task that is still to be done. */
export function noteInRound(view: RoundView, progress: Progress): boolean {
  const task = view.tasks.get(progress.user);
  if (task === undefined || task.submitted_at !== null || !isOpen(view)) return false;
  move(view, task, 'working');
  task.client = progress.client;
  return true;
}

/** The round as JSON, as Python writes it. */
export function roundJson(view: RoundView): Record<string, unknown> {
  const { sequences: _, excluded: __, failed: ___, tasks, ...rest } = view;
  return { ...rest, phase: phaseOf(view), tasks: [...tasks.values()] };
}

/** Updates still count. */
function isOpen(view: RoundView): boolean {
  return view.planned_at !== null && view.ended_at === null;
}

function taskOf(view: RoundView, user: string): TaskView {
  let task = view.tasks.get(user);
  if (task === undefined) {
    task = {
      user,
      state: 'assigned',
      client: '',
      assigned_at: null,
      submitted_at: null,
      refused_at: null,
      code: null,
      reason: '',
      images: 0,
      mismatched_images: 0,
      trained_images: 0,
      predict_s: 0,
      train_s: 0,
    };
    view.tasks.set(user, task);
    view.counts.assigned += 1;
  }
  return task;
}

function submitted(view: RoundView, data: DataOf<'fedbus.update.submitted'>, sequence: number, time: string): void {
  const { user, client, metrics } = data;
  const [code, reason] = whyNot(view, user, data.base_model);
  const task = taskOf(view, user);
  view.submitted += 1;
  if (code !== null) view.refused += 1;
  // What stands about the user's update stays: this is another one.
  if (code !== null && task.submitted_at !== null) return;
  const { mismatched_images, trained_images, predict_s, train_s } = metrics;
  const figures = { images: metrics.predictions.length, mismatched_images, trained_images, predict_s, train_s };
  Object.assign(task, { client, submitted_at: time, ...figures });
  view.sequences.set(user, sequence);
  if (code === null) move(view, task, 'submitted');
  else refuse(view, task, code, reason, time);
}

function whyNot(view: RoundView, user: string, base: string): readonly [string | null, string] {
  const task = view.tasks.get(user);
  if (view.planned_at === null || task === undefined || task.assigned_at === null) {
    return ['unknown_task', 'no such task was assigned in this round'];
  }
  if (counts(task) || view.excluded.has(user)) return ['duplicate', "this user's update was submitted before"];
  if (!isOpen(view)) return ['stale', 'the round had ended'];
  if (base !== view.base_model) return ['stale', 'the update was trained from another model'];
  return [null, ''];
}

function rejected(view: RoundView, data: DataOf<'fedbus.update.rejected'>, time: string): void {
  const task = taskOf(view, data.user);
  if (!NO_FAULT.includes(data.code)) view.rejections += 1;
  if (!data.attempt.startsWith('seq-')) {
    // The gateway refused an upload, and the task goes on, unless nobody can do it.
    if (data.code === 'refused' && isOpen(view) && !counts(task)) view.excluded.add(data.user);
    if (task.submitted_at !== null) return;
    task.client = data.client;
    refuse(view, task, data.code, data.reason, time);
  } else if (isOpen(view) && counts(task) && data.attempt === `seq-${view.sequences.get(data.user)}`) {
    view.refused += 1;
    view.excluded.add(data.user);
    refuse(view, task, data.code, data.reason, time);
  }
}

/** What came in time is accepted, the rest too late. */
function close(view: RoundView, data: DataOf<'fedbus.round.closed'>, time: string): void {
  Object.assign(view, { ended: data.reason, missing: data.missing, ended_at: time });
  for (const task of view.tasks.values()) {
    if (!counts(task)) continue;
    if (view.sequences.get(task.user)! <= data.through) move(view, task, 'accepted');
    else {
      view.refused += 1;
      refuse(view, task, 'stale', 'the round had ended', time);
    }
  }
}

function refuse(view: RoundView, task: TaskView, code: string, reason: string, time: string): void {
  move(view, task, code === 'stale' ? 'stale' : 'rejected');
  Object.assign(task, { code, reason, refused_at: time });
}

/** Changes a task's state, and every sum that depends on it. */
function move(view: RoundView, task: TaskView, state: TaskState): void {
  const before = counts(task);
  view.counts[task.state] -= 1;
  view.counts[state] += 1;
  task.state = state;
  const change = Number(counts(task)) - Number(before);
  view.mismatched_images += change * task.mismatched_images;
  view.trained_images += change * task.trained_images;
}
