/** Shows the task that this tab trains: its images with label and prediction, its phase, loss and upload. */
import type { ClientView, Held } from '../gateway/client';
import { bar, figure, html, percent } from './dom';
import { type Images, imageAt } from '../training/safetensors';

interface Tile {
  readonly box: HTMLElement;
  readonly label: HTMLElement;
  readonly prediction: HTMLElement;
}

export class TaskPanel {
  #lease = '';
  #images: Images | null = null;
  #tiles: readonly Tile[] = [];
  readonly #heading = html('h2', {}, 'This tab');
  readonly #phase = html('p', { class: 'phase' });
  readonly #progress = html('div');
  readonly #figures = html('div', { class: 'figures' });
  readonly #gallery = html('ol', { class: 'gallery', 'aria-label': "The user's images" });
  readonly #legend = html('p', { class: 'legend' }, 'Label above, prediction below; the tab trains where they differ.');

  /** `steps` explains what will happen, until there is something to show. */
  constructor(
    section: HTMLElement,
    private readonly steps: HTMLElement,
  ) {
    section.prepend(this.#heading, this.#phase, this.#progress, this.#figures, this.#gallery, this.#legend);
  }

  show(view: ClientView): void {
    const { shown } = view;
    const idle = shown === null;
    this.#heading.textContent = idle ? 'This tab' : `${shown.task.user}, round ${shown.task.round}`;
    this.steps.hidden = !idle;
    this.#progress.hidden = this.#figures.hidden = this.#gallery.hidden = this.#legend.hidden = idle;
    this.#phase.textContent = phaseOf(view);
    this.#progress.replaceChildren(bar('progress of the task', taskShare(shown)));
    const loss = shown?.progress?.loss ?? null;
    this.#figures.replaceChildren(
      figure(String(view.done), view.done === 1 ? 'task done' : 'tasks done'),
      figure(String(shown?.progress?.trained_images ?? 0), 'images trained'),
      figure(loss === null ? '–' : loss.toFixed(3), 'loss'),
      upload(view),
    );
    if (shown !== null) this.#showImages(shown);
  }

  #showImages(held: Held): void {
    if (held.lease !== this.#lease || held.images !== this.#images) {
      this.#lease = held.lease;
      this.#images = held.images;
      this.#tiles =
        held.images === null ? [] : Array.from({ length: held.images.count }, (_, at) => newTile(held.images!, at));
      this.#gallery.replaceChildren(...this.#tiles.map(({ box }) => box));
    }
    const name = (index: number): string => held.classes[index] ?? `class ${index}`;
    for (const [at, { box, label, prediction }] of this.#tiles.entries()) {
      const truth = held.task.labels[at] ?? null;
      const said = held.predictions[at];
      label.textContent = truth === null ? 'no label' : name(truth);
      prediction.textContent = said === undefined ? '…' : name(said);
      box.dataset.match = truth === null || said === undefined ? 'unknown' : truth === said ? 'yes' : 'no';
    }
  }
}

/** One image on a canvas of its own size; the style sheet scales it. */
function newTile(images: Images, index: number): Tile {
  const { width, height, channels } = images;
  const canvas = html('canvas', { width, height, role: 'img', 'aria-label': `image ${index + 1}` });
  const picture = new ImageData(width, height);
  const pixels = imageAt(images, index);
  for (let pixel = 0; pixel < width * height; pixel++) {
    for (let channel = 0; channel < 3; channel++) {
      picture.data[4 * pixel + channel] = pixels[pixel * channels + Math.min(channel, channels - 1)]!;
    }
    picture.data[4 * pixel + 3] = 255;
  }
  canvas.getContext('2d')?.putImageData(picture, 0, 0);
  const label = html('span', { class: 'label' });
  const prediction = html('span', { class: 'prediction' });
  return { box: html('li', {}, canvas, label, prediction), label, prediction };
}

function phaseOf({ current, running, connection, download, engine }: ClientView): string {
  if (download !== null) return `Fetching ${size(download.loaded)} of ${size(download.size)}.`;
  if (current !== null) {
    if (current.images === null) return `Fetching the task of ${current.task.user}.`;
    if (current.progress === null) return 'Predicting.';
    const { mismatched_images, images_seen } = current.progress;
    return `Training on ${mismatched_images} of ${images_seen} images: there, prediction and label differ.`;
  }
  if (!running) return 'Press Start to lend this tab to the run.';
  if (engine === '') return 'Loading the training engine.';
  if (connection !== 'open') return 'Looking for the gateway.';
  return 'Waiting for a task.';
}

/** How much of the task's training is done, 0 to 1. */
export function taskShare(held: Held | null): number {
  return held?.stage === 'uploading' ? 1 : (held?.progress?.share ?? 0);
}

function upload({ uploads }: ClientView): HTMLElement {
  const total = uploads.reduce((sum, one) => sum + one.size, 0);
  const sent = uploads.reduce((sum, one) => sum + one.acknowledged, 0);
  return total === 0 ? figure('–', 'no upload') : figure(percent(sent / total), `of ${size(total)} sent`);
}

function size(bytes: number): string {
  return bytes < 1e6 ? `${(bytes / 1e3).toFixed(0)} kB` : `${(bytes / 1e6).toFixed(1)} MB`;
}
