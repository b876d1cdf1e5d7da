/** Image classification: train where prediction and label differ, on the image and augmented copies of it. */
import { CheckError } from '../../words/checks';
import type { Task, TaskSpec } from '../../words/protocol';
import { augment } from '../augment';
import type { Batch, OpenKind, Shard, TaskKind } from '../kind';
import { pixelTable, toPixelValues } from '../pixels';
import { type Images, readImages } from '../safetensors';

export const openKind: OpenKind = ({ mean, std }) => new ImageClassification(pixelTable(mean, std));

class ImageClassification implements TaskKind {
  constructor(private readonly table: readonly Float32Array[]) {}

  decode(shard: Uint8Array<ArrayBuffer>): Shard {
    const images = readImages(shard);
    if (images.channels !== this.table.length) {
      throw new CheckError(`shard: images of ${images.channels} channels for a model of ${this.table.length}`);
    }
    return new ImageShard(images, this.table);
  }

  predictions(outputs: Float32Array, count: number): number[] {
    return firstMaxima(outputs, count);
  }

  choose(predictions: readonly number[], labels: Task['labels']): number[] {
    return predictions.flatMap((prediction, index) => {
      const label = labels[index] ?? null;
      return label !== null && label !== prediction ? [index] : [];
    });
  }
}

class ImageShard implements Shard {
  constructor(
    readonly pictures: Images,
    private readonly table: readonly Float32Array[],
  ) {}

  get count(): number {
    return this.pictures.count;
  }

  inputs(): Float32Array<ArrayBuffer> {
    return toPixelValues(this.pictures, this.table);
  }

  /** For each chosen image itself and its `spec.augmentations` copies, all with its label. */
  *batches(chosen: readonly number[], task: Task, spec: TaskSpec): Iterable<Batch> {
    for (const index of chosen) {
      const batch = augment(this.pictures, index, spec.augmentations, task.seed, spec.augmentation);
      const copies = copiesOf(batch);
      const targets = new Array<number>(batch.count).fill(task.labels[index]!);
      yield { own: [index], inputs: toPixelValues(copies, this.table), made: copies.count, targets };
    }
  }
}

/** The augmented copies of a batch, without the original that comes first. */
function copiesOf(batch: Images): Images {
  return { ...batch, count: batch.count - 1, data: batch.data.subarray(batch.data.length / batch.count) };
}

/** For each row of logits [count, classes] the place of its largest value, the first of equals. */
export function firstMaxima(logits: Float32Array, count: number): number[] {
  const classes = logits.length / count;
  return Array.from({ length: count }, (_, row) => {
    let best = 0;
    for (let at = 1; at < classes; at++) {
      if (logits[row * classes + at]! > logits[row * classes + best]!) best = at;
    }
    return best;
  });
}
