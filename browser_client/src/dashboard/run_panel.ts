/** Shows a run: its accuracy, the round's way to its quorum, and who is done. */
import { bar, figure, html, percent } from '../page/dom';
import { accuracyChart } from './chart';
import type { RoundView, TaskView } from './round_view';
import { accuracyByRound, currentRound, type RunView } from './run_view';

/** More users than this are shown as numbers only. */
const MOST_DOTS = 400;

export class RunPanel {
  readonly #heading = html('h2');
  readonly #figures = html('div', { class: 'figures' });
  readonly #chart = html('div');
  readonly #round = html('div', { class: 'round' });
  readonly #latest = html('ul', { class: 'latest' });

  constructor(section: HTMLElement) {
    section.append(this.#heading, this.#figures, this.#chart, this.#round, this.#latest);
  }

  /** `answered` says whether the gateway has listed its runs yet. */
  show(view: RunView | null, problem: string, answered: boolean): void {
    if (view === null || view.started_at === null) {
      const [heading, words] = beforeARun(view, answered);
      this.#heading.textContent = heading;
      for (const part of [this.#figures, this.#chart, this.#latest]) part.replaceChildren();
      this.#round.replaceChildren(html('p', { class: 'phase' }, problem || words));
      return;
    }
    this.#heading.replaceChildren(
      `Run ${view.run} `,
      html('span', { class: 'chip', 'data-status': view.status }, view.status),
    );
    const [current, accuracy] = [currentRound(view), accuracyByRound(view)];
    this.#figures.replaceChildren(...figures(view, current, accuracy));
    this.#chart.replaceChildren(
      html('h3', {}, 'Accuracy on held-out images, by round'),
      accuracyChart(accuracy, Math.max(view.rounds_planned, 1)),
    );
    this.#round.replaceChildren(...(current === null ? labelling(view) : round(current)));
    this.#latest.replaceChildren(
      ...view.latest.flatMap(({ round: number, user }) => {
        const task = view.rounds.get(number)?.tasks.get(user);
        return task === undefined ? [] : [latest(task)];
      }),
    );
    if (problem !== '') this.#round.append(html('p', { class: 'problem' }, problem));
  }
}

/** Heading and words while nothing is known of a run. */
export function beforeARun(view: RunView | null, answered: boolean): readonly [string, string] {
  if (view !== null) return [`Run ${view.run}`, 'connecting…'];
  return answered ? ['No run yet', 'The dashboard appears with the first run.'] : ['Runs', 'connecting…'];
}

function latest(task: TaskView): HTMLElement {
  const words = ` ${task.mismatched_images} of ${task.images} images mismatched, by ${task.client}`;
  return html('li', {}, html('strong', {}, task.user), words);
}

function figures(view: RunView, current: RoundView | null, accuracy: ReadonlyMap<number, number>): HTMLElement[] {
  const base = accuracy.get(0);
  const newest = Math.max(...accuracy.keys());
  const now = accuracy.get(newest);
  const gain = base === undefined || now === undefined ? null : 100 * (now - base);
  return [
    figure(`${current?.round ?? 0} / ${view.rounds_planned}`, 'round'),
    figure(String(view.users), 'users'),
    figure(now === undefined ? '–' : percent(now, 1), 'accuracy'),
    figure(gain === null ? '–' : `${gain >= 0 ? '+' : '−'}${Math.abs(gain).toFixed(1)}`, 'points over base'),
  ];
}

function labelling(view: RunView): HTMLElement[] {
  const done = view.labelled.size;
  const share = view.users === 0 ? 0 : done / view.users;
  return [html('h3', {}, `Labelled: ${done} of ${view.users} users`), bar('users labelled', share)];
}

function round(view: RoundView): HTMLElement[] {
  const shares = [view.submitted / view.users, view.quorum / view.users] as const;
  const rejected = view.rejections > 0 ? `, ${view.rejections} rejected` : '';
  const end = view.ended === '' ? '' : ` – closed: ${view.ended}`;
  return [
    html(
      'h3',
      {},
      `Round ${view.round}: ${view.submitted} of ${view.users} updates, quorum ${view.quorum}${rejected}${end}`,
    ),
    bar('updates of the round', ...shares),
    html(
      'p',
      { class: 'legend' },
      `${view.mismatched_images} images mismatched, ${view.trained_images} images trained this round`,
    ),
    ...(view.tasks.size <= MOST_DOTS ? [dots(view)] : []),
  ];
}

function dotOf(task: TaskView): 'done' | 'working' | 'waiting' {
  if (task.submitted_at !== null) return 'done';
  return task.state === 'working' ? 'working' : 'waiting';
}

function dots(view: RoundView): HTMLElement {
  const list = html('ul', { class: 'dots', 'aria-label': 'users of the round' });
  for (const task of view.tasks.values()) {
    const state = dotOf(task);
    const words = `${task.user}: ${state}${task.client === '' ? '' : `, ${task.client}`}`;
    list.append(html('li', { 'data-state': state, title: words, 'aria-label': words }));
  }
  const states = ['done', 'working', 'waiting'].map((state) => html('li', { 'data-state': state }, state));
  return html('div', {}, list, html('ul', { class: 'key', 'aria-hidden': 'true' }, ...states));
}
