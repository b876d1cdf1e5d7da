/** Small runtime checks that turn unknown JSON into typed values, or say where it is wrong. */

/** A value from outside is not what it must be. */
export class CheckError extends Error {
  override readonly name = 'CheckError';
}

/** Returns the value with its type, or throws CheckError; `where` names the place in the message. */
export type Check<T> = (value: unknown, where: string) => T;
export type Checked<C> = C extends Check<infer T> ? T : never;

function fail(where: string, expected: string): never {
  throw new CheckError(`${where}: expected ${expected}`);
}

export const text =
  (pattern: RegExp | null = null, maximum = 65_536): Check<string> =>
  (value, where) =>
    typeof value === 'string' && value.length <= maximum && (pattern === null || pattern.test(value))
      ? value
      : fail(where, pattern === null ? `text of at most ${maximum} characters` : `text like ${pattern.source}`);

export const integer =
  (minimum: number, maximum = Number.MAX_SAFE_INTEGER): Check<number> =>
  (value, where) =>
    Number.isSafeInteger(value) && (value as number) >= minimum && (value as number) <= maximum
      ? (value as number)
      : fail(where, `an integer from ${minimum} to ${maximum}`);

export const real: Check<number> = (value, where) =>
  typeof value === 'number' && Number.isFinite(value) ? value : fail(where, 'a finite number');

export const flag: Check<boolean> = (value, where) =>
  typeof value === 'boolean' ? value : fail(where, 'true or false');

export const literal =
  <const T extends string | number>(...expected: readonly T[]): Check<T> =>
  (value, where) =>
    expected.find((one) => one === value) ?? fail(where, expected.map((one) => JSON.stringify(one)).join(' or '));

/** `null` and a missing value both become `null`. */
export const optional =
  <T>(check: Check<T>): Check<T | null> =>
  (value, where) =>
    value === null || value === undefined ? null : check(value, where);

export const list =
  <T>(check: Check<T>, minimum = 0, maximum = 100_000): Check<readonly T[]> =>
  (value, where) => {
    if (!Array.isArray(value) || value.length < minimum || value.length > maximum) {
      fail(where, `a list of ${minimum} to ${maximum}`);
    }
    return (value as unknown[]).map((item, index) => check(item, `${where}[${index}]`));
  };

/** An object with at least these fields; others are left out of the result, so that a newer peer may add some. */
export const record =
  <S extends Record<string, Check<unknown>>>(shape: S): Check<{ readonly [K in keyof S]: Checked<S[K]> }> =>
  (value, where) => {
    if (typeof value !== 'object' || value === null || Array.isArray(value)) fail(where, 'an object');
    const result: Record<string, unknown> = {};
    for (const [key, check] of Object.entries(shape)) {
      result[key] = check((value as Record<string, unknown>)[key], `${where}.${key}`);
    }
    return result as { readonly [K in keyof S]: Checked<S[K]> };
  };

/** An object with any fields, all of one kind. */
export const named =
  <T>(check: Check<T>, maximum = 1_000): Check<Readonly<Record<string, T>>> =>
  (value, where) => {
    if (typeof value !== 'object' || value === null || Array.isArray(value)) fail(where, 'an object');
    const entries = Object.entries(value);
    if (entries.length > maximum) fail(where, `an object of at most ${maximum} fields`);
    return Object.fromEntries(entries.map(([key, item]) => [key, check(item, `${where}.${key}`)]));
  };

/** The value that `body` holds as JSON. */
export function parseJson<T>(body: string, check: Check<T>, where: string): T {
  let value: unknown;
  try {
    value = JSON.parse(body);
  } catch {
    fail(where, 'JSON');
  }
  return check(value, where);
}
