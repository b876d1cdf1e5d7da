/** Shows a run: its accuracy, the round's way to its quorum, and who is done. */
import { bar, figure, html, percent } from '../page/dom';
import { accuracyChart } from './chart';
import type { RoundView, RunView } from './run_view';

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

  show(view: RunView | null, problem: string): void {
    if (view === null) {
      this.#heading.textContent = 'No run yet';
      this.#round.replaceChildren(
        html('p', { class: 'phase' }, problem || 'The dashboard appears with the first run.'),
      );
      return;
    }
    this.#heading.replaceChildren(
      `Run ${view.run} `,
      html('span', { class: 'chip', 'data-status': view.status }, view.status),
    );
    this.#figures.replaceChildren(...figures(view));
    this.#chart.replaceChildren(
      html('h3', {}, 'Accuracy on held-out images, by round'),
      accuracyChart(view.accuracy, Math.max(view.rounds, 1)),
    );
    this.#round.replaceChildren(...(view.round === null ? labelling(view) : round(view.round)));
    this.#latest.replaceChildren(
      ...view.latest.map((one) =>
        html(
          'li',
          {},
          html('strong', {}, one.user),
          ` ${one.mismatched} of ${one.images} images mismatched, by ${one.client}`,
        ),
      ),
    );
    if (problem !== '') this.#round.append(html('p', { class: 'problem' }, problem));
  }
}

function figures(view: RunView): HTMLElement[] {
  const base = view.accuracy.get(0);
  const newest = Math.max(...view.accuracy.keys());
  const now = view.accuracy.get(newest);
  const gain = base === undefined || now === undefined ? null : 100 * (now - base);
  return [
    figure(`${view.round?.number ?? 0} / ${view.rounds}`, 'round'),
    figure(String(view.users), 'users'),
    figure(now === undefined ? '–' : percent(now, 1), 'accuracy'),
    figure(gain === null ? '–' : `${gain >= 0 ? '+' : '−'}${Math.abs(gain).toFixed(1)}`, 'points over base'),
  ];
}

function labelling(view: RunView): HTMLElement[] {
  const share = view.users === 0 ? 0 : view.labelled / view.users;
  return [html('h3', {}, `Labelled: ${view.labelled} of ${view.users} users`), bar('users labelled', share)];
}

function round(view: RoundView): HTMLElement[] {
  const shares = [view.submitted / view.users, view.quorum / view.users] as const;
  const rejected = view.rejected > 0 ? `, ${view.rejected} rejected` : '';
  const end = view.ended === '' ? '' : ` – closed: ${view.ended}`;
  return [
    html(
      'h3',
      {},
      `Round ${view.number}: ${view.submitted} of ${view.users} updates, quorum ${view.quorum}${rejected}${end}`,
    ),
    bar('updates of the round', ...shares),
    html('p', { class: 'legend' }, `${view.mismatched} images mismatched, ${view.trained} images trained this round`),
    ...(view.states.size <= MOST_DOTS ? [dots(view)] : []),
  ];
}

function dots(view: RoundView): HTMLElement {
  const list = html('ul', { class: 'dots', 'aria-label': 'users of the round' });
  for (const [user, state] of view.states) {
    const client = view.clients.get(user);
    const words = `${user}: ${state}${client === undefined ? '' : `, ${client}`}`;
    list.append(html('li', { 'data-state': state, title: words, 'aria-label': words }));
  }
  const states = ['done', 'working', 'waiting'].map((state) => html('li', { 'data-state': state }, state));
  return html('div', {}, list, html('ul', { class: 'key', 'aria-hidden': 'true' }, ...states));
}
