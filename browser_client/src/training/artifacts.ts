/** Which files of the artifacts an engine opens, and how it gets them. */
import type { EngineFiles } from './engine';
import type { Manifest } from './manifest';
import type { Ref } from '../words/protocol';

/** The files besides the optimizer model: those of the split where the model has one, the whole model's otherwise. */
export function filesToOpen({ files }: Manifest): readonly Ref[] {
  const { prefix_model, suffix_training_model, suffix_eval_model, suffix_checkpoint } = files;
  return prefix_model !== null && suffix_training_model !== null && suffix_eval_model !== null && suffix_checkpoint !== null
    ? [suffix_training_model, suffix_eval_model, suffix_checkpoint, prefix_model]
    : [files.training_model, files.eval_model, files.checkpoint];
}

/** Their bytes. */
export async function fetchFiles(
  manifest: Manifest,
  objects: { get(ref: Ref): Promise<Uint8Array> },
): Promise<EngineFiles> {
  const files = await Promise.all(filesToOpen(manifest).map((file) => objects.get(file)));
  const [trainingModel, evalModel, checkpoint, prefixModel = null] = files;
  return { trainingModel: trainingModel!, evalModel: evalModel!, checkpoint: checkpoint!, prefixModel };
}
