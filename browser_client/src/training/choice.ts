/** Which engine trains: by name or the preferred one, of those that run here and whose files the artifacts have. */
import { EngineError, type EngineMaker } from './engine';
import { moduleName } from './module_name';

export type EngineErrorCode = 'engine_unknown' | 'engine_unavailable';

/** No engine, or not the one that was asked for, can be used; the codes are those of docs/errors.md. */
export class EngineChoiceError extends EngineError {
  constructor(
    readonly code: EngineErrorCode,
    message: string,
  ) {
    super(message);
  }
}

/** The engine that is used, and why it is this one. */
export interface Choice {
  readonly name: string;
  readonly maker: EngineMaker;
  readonly reason: string;
}

export type Engines = ReadonlyMap<string, EngineMaker>;

/** All engines by name, the preferred ones first: each is a module of `engines/`, `ort_training.ts` is `ort-training`. */
export function engines(): Engines {
  const modules = import.meta.glob<EngineMaker>('./engines/*.ts', { eager: true, import: 'ENGINE' });
  const makers = Object.entries(modules).map(([path, maker]) => [moduleName(path), maker] as const);
  return new Map(makers.sort(([a, one], [b, other]) => other.preference - one.preference || (a < b ? -1 : 1)));
}

/**
 * The engine to use. `wanted` is the name that was asked for, or empty; `offered` those whose files the artifacts have,
 * or null while nobody knows them yet. Throws EngineChoiceError.
 */
export async function choose(wanted: string, offered: readonly string[] | null, known: Engines): Promise<Choice> {
  const names = [...known.keys()].join(', ');
  if (wanted !== '' && !known.has(wanted)) {
    throw new EngineChoiceError('engine_unknown', `there is no engine ${JSON.stringify(wanted)}; there is ${names}`);
  }
  const passed: string[] = [];
  for (const [name, maker] of known) {
    if (wanted !== '' && name !== wanted) continue;
    const obstacle = await obstacleOf(maker, offered);
    if (obstacle === null) return { name, maker, reason: wanted !== '' ? 'it was asked for' : reasonOf(names, passed) };
    passed.push(`${name} cannot be used: ${obstacle}`);
  }
  throw new EngineChoiceError('engine_unavailable', passed.join('; '));
}

async function obstacleOf(maker: EngineMaker, offered: readonly string[] | null): Promise<string | null> {
  if (offered === null || offered.includes(maker.opens)) return maker.whyNot();
  return `the artifacts have files for ${offered.join(', ') || 'no engine'} and not for ${maker.opens}`;
}

function reasonOf(names: string, passed: readonly string[]): string {
  if (!names.includes(', ')) return 'the only one there is';
  return `the first of ${names} that can be used${passed.length > 0 ? ` (${passed.join('; ')})` : ''}`;
}
