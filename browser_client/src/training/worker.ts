/** The training worker: answers the page's commands with a runner on the engine that can be used. */
import { authorizedFetch } from '../objects/authorized';
import { EngineChoiceError, engines } from './choice';
import { ObjectStore, openObjectCache } from '../objects/store';
import type { Ref } from '../words/protocol';
import { TaskRunner } from './runner';
import type { TrainerCommand, TrainerEvent, TrainerSettings } from './trainer';

/** `self`, as it is in a worker; TypeScript's DOM types know only a window. */
const scope = self as unknown as {
  onmessage: (message: MessageEvent<TrainerCommand>) => void;
  postMessage: (event: TrainerEvent, transfer: Transferable[]) => void;
};
const say = (event: TrainerEvent, transfer: Transferable[] = []): void => scope.postMessage(event, transfer);
let runner: Promise<TaskRunner> | null = null;

async function open(settings: TrainerSettings): Promise<TaskRunner> {
  const onDownload = (ref: Ref, loaded: number): void => say({ type: 'download', ref, loaded });
  const fetchFrom = authorizedFetch(settings.token);
  const objects = new ObjectStore(settings.objectsFolder, await openObjectCache(), onDownload, fetchFrom);
  // Not every browser says how much memory its device has.
  const { deviceMemory } = navigator as { deviceMemory?: number };
  const { wasmFolder, threads, engine } = settings;
  const options = { engines: engines(), wanted: engine, wasmFolder, threads, deviceGigabytes: deviceMemory };
  const opened = new TaskRunner(options, objects, say);
  await opened.announce().catch((error: unknown) => {
    if (!(error instanceof EngineChoiceError)) throw error;
    say({ type: 'unable', reason: `${error.code}: ${error.message}` });
  });
  return opened;
}

async function obey(command: TrainerCommand): Promise<void> {
  if (command.type === 'settings') runner = open(command.settings);
  const opened = await runner;
  if (opened === null) throw new Error('the first command must be settings');
  if (command.type === 'prepare') await opened.prepare(command.task);
  else if (command.type === 'run') await opened.run(command.lease, command.task);
  else if (command.type === 'drop') opened.drop(command.lease);
}

// An error in a promise would stay here; reported, it reaches the page's `onerror`.
scope.onmessage = ({ data }) => void obey(data).catch(reportError);
