/** Which kind of client an engine's name stands for; the twin of agents/words/engine_kinds.py. */

export type EngineKind = 'browser' | 'native' | 'other';

const KINDS: readonly EngineKind[] = ['browser', 'native', 'other'];
const LIBRARIES: ReadonlyMap<string, EngineKind> = new Map([
  ['onnxruntime-web', 'browser'],
  ['onnxruntime-training', 'native'],
]);

/** What the name's words say, or else what its library is known for. */
export function kindOf(engine: string): EngineKind {
  const words = engine.split(/[\s/,]+/);
  return KINDS.find((kind) => words.includes(kind)) ?? LIBRARIES.get(words[0]!) ?? 'other';
}
