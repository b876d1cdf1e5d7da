/** The accuracy curve of a run as an inline SVG. */
import { percent, svg } from '../page/dom';

const WIDTH = 480;
const HEIGHT = 200;
const LEFT = 44;
const RIGHT = 12;
const TOP = 14;
const BOTTOM = 26;
const LEAST_RANGE = 0.1;

/** Rounds 0 to `rounds` on the x axis; the dashed line is the base model (round 0). */
export function accuracyChart(accuracy: ReadonlyMap<number, number>, rounds: number): SVGSVGElement {
  const points = [...accuracy].sort(([a], [b]) => a - b);
  const chart = svg('svg', { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, class: 'chart', role: 'img' });
  chart.append(svg('title', {}, title(points)));
  const values = points.map(([, value]) => value);
  const [low, high] = range(values);
  const x = (round: number): number => LEFT + (round / Math.max(1, rounds)) * (WIDTH - LEFT - RIGHT);
  const y = (value: number): number => TOP + ((high - value) / (high - low)) * (HEIGHT - TOP - BOTTOM);
  for (const value of [low, (low + high) / 2, high]) {
    chart.append(
      svg('line', { class: 'grid', x1: LEFT, x2: WIDTH - RIGHT, y1: y(value), y2: y(value) }),
      svg('text', { x: LEFT - 6, y: y(value) + 4, 'text-anchor': 'end' }, percent(value, 1)),
    );
  }
  const step = Math.max(1, Math.ceil(rounds / 10));
  for (let round = 0; round <= rounds; round += step) {
    chart.append(svg('text', { x: x(round), y: HEIGHT - 8, 'text-anchor': 'middle' }, String(round)));
  }
  const base = accuracy.get(0);
  if (base !== undefined) {
    chart.append(svg('line', { class: 'base', x1: LEFT, x2: WIDTH - RIGHT, y1: y(base), y2: y(base) }));
  }
  const places = points.map(([round, value]) => `${x(round).toFixed(1)},${y(value).toFixed(1)}`);
  chart.append(svg('polyline', { class: 'curve', points: places.join(' ') }));
  for (const [round, value] of points) {
    chart.append(
      svg(
        'circle',
        { class: 'point', cx: x(round), cy: y(value), r: 3.5 },
        svg('title', {}, `round ${round}: ${percent(value, 1)}`),
      ),
    );
  }
  return chart;
}

function range(values: readonly number[]): [number, number] {
  if (values.length === 0) return [0, 1];
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const room = Math.max(LEAST_RANGE - (high - low), 0.2 * (high - low)) / 2;
  const from = Math.max(0, Math.floor((low - room) * 100) / 100);
  return [from, Math.min(1, Math.ceil((high + room) * 100) / 100)];
}

function title(points: readonly (readonly [number, number])[]): string {
  const last = points.at(-1);
  return last === undefined ? 'accuracy: no figure yet' : `accuracy ${percent(last[1], 1)} after round ${last[0]}`;
}
