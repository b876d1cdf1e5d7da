/** The manifest of the training artifacts, as artifacts/manifest.py writes it: the parts that a trainer needs. */
import { type Checked, flag, integer, list, literal, optional, parseJson, real, record, text } from '../words/checks';
import { ref } from '../words/protocol';

const manifest = record({
  version: literal(1),
  name: text(null, 200),
  model: record({
    image_size: integer(1),
    channels: integer(1),
    classes: list(text(null, 200), 2),
    mean: list(real),
    std: list(real),
  }),
  inputs: list(text(), 2, 2),
  outputs: list(text(), 2, 2),
  optimizer: record({ stateless: flag }),
  trainable_count: integer(1),
  files: record({
    training_model: ref,
    eval_model: ref,
    checkpoint: ref,
    prefix_model: optional(ref),
    suffix_training_model: optional(ref),
    suffix_eval_model: optional(ref),
    suffix_checkpoint: optional(ref),
  }),
  prefix: optional(record({ input: text(), output: text(), shape: list(integer(1), 1, 2) })),
  memory: record({ parameters: integer(1), forward_per_image: integer(1), step_per_image: integer(1) }),
});

export type Manifest = Checked<typeof manifest>;

/** Throws CheckError when it is not a manifest of version 1. */
export function parseManifest(body: string): Manifest {
  return parseJson(body, manifest, 'manifest');
}
