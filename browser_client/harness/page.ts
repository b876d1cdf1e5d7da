/** The page that browser tests drive: passes one command to the harness worker and returns its answer. */
import type { HarnessCommand } from './worker';

declare global {
  interface Window {
    /** Answers with the worker's result as JSON, or throws what went wrong there. */
    harness: (command: HarnessCommand) => Promise<string>;
  }
}

window.harness = (command) =>
  new Promise((resolve, reject) => {
    const worker = new Worker(new URL('./worker.ts', import.meta.url), { type: 'module' });
    worker.onmessage = (message: MessageEvent<{ result?: unknown; error?: string }>) => {
      worker.terminate();
      if (message.data.error !== undefined) reject(new Error(message.data.error));
      else resolve(JSON.stringify(message.data.result));
    };
    worker.onerror = (event) => reject(new Error(event.message));
    worker.postMessage(command);
  });
document.body.dataset.isolated = String(crossOriginIsolated);
