/** The manifest of the training artifacts, as artifacts/manifest.py writes it: the parts that a trainer needs. */
import {
  type Checked,
  CheckError,
  flag,
  integer,
  list,
  literal,
  named,
  optional,
  parseJson,
  real,
  record,
  text,
} from '../words/checks';
import { type Ref, ref } from '../words/protocol';

export const ORT_TRAINING = 'ort-training';

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
  optimizer: record({ stateless: flag, learning_rate_initializer: text(null, 200) }),
  trainable_count: integer(1),
  files: named(optional(ref)),
  engines: optional(named(list(text(null, 64)))),
  prefix: optional(record({ input: text(), output: text(), shape: list(integer(1), 1, 2) })),
  memory: record({ parameters: integer(1), forward_per_image: integer(1), step_per_image: integer(1) }),
});

export type Manifest = Checked<typeof manifest>;

/** Throws CheckError when it is not a manifest of version 1. */
export function parseManifest(body: string): Manifest {
  return parseJson(body, manifest, 'manifest');
}

/** By engine the roles of the files that it opens; a manifest that does not say offers what its files show. */
export function offered({ engines, files, prefix }: Manifest): Readonly<Record<string, readonly string[]>> {
  if (engines !== null && Object.keys(engines).length > 0) return engines;
  const model =
    prefix === null
      ? ['training_model', 'eval_model', 'checkpoint']
      : ['prefix_model', 'suffix_training_model', 'suffix_eval_model', 'suffix_checkpoint'];
  const roles = [...model, 'optimizer_model'];
  return roles.every((role) => (files[role] ?? null) !== null) ? { [ORT_TRAINING]: roles } : {};
}

/** By role the files that an engine opens, one of those `offered`; throws CheckError where the manifest lacks one. */
export function filesOf(given: Manifest, engine: string): ReadonlyMap<string, Ref> {
  return new Map(
    (offered(given)[engine] ?? []).map((role) => {
      const file = given.files[role] ?? null;
      if (file === null) throw new CheckError(`manifest.files: there is no ${role}`);
      return [role, file];
    }),
  );
}
