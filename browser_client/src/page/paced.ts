/** Draws no more often than people can follow: the page shares its cores with the training. */

/** A function that calls `draw` with a coming frame, at most once in `everyMs`, however often it is called itself. */
export function paced(everyMs: number, draw: () => void): () => void {
  let waiting = false;
  let drawnAt = Number.NEGATIVE_INFINITY;
  return () => {
    if (waiting) return;
    waiting = true;
    setTimeout(
      () =>
        requestAnimationFrame(() => {
          waiting = false;
          drawnAt = performance.now();
          draw();
        }),
      Math.max(0, drawnAt + everyMs - performance.now()),
    );
  };
}
