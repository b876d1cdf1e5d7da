/** The page: wires settings, trainer, client and dashboard together, and shows them. */
import { authorizedFetch } from './objects/authorized';
import { Client, type ClientView } from './gateway/client';
import { Connection } from './gateway/connection';
import { RunFeed } from './dashboard/run_feed';
import { RunPanel } from './dashboard/run_panel';
import { byId, percent } from './page/dom';
import { paced } from './page/paced';
import { readSettings, socketUrl } from './page/settings';
import { TaskPanel, taskShare } from './page/task_panel';
import { LastingWorker } from './training/lasting_worker';
import { WorkerTrainer } from './training/trainer';

const CLIENT_EVERY_MS = 200;
const RUN_EVERY_MS = 1_000;
const settings = readSettings({
  href: location.href,
  storage: sessionStorage,
  isolated: crossOriginIsolated,
  processors: navigator.hardwareConcurrency,
  random: Math.random,
});
const start = byId<HTMLButtonElement>('start');
const pause = byId<HTMLButtonElement>('pause');
const taskPanel = new TaskPanel(byId('client'), byId('steps'));
const runPanel = new RunPanel(byId('run'));
const redraw = paced(CLIENT_EVERY_MS, () => draw(client.view));
const feed = new RunFeed(
  settings.gateway,
  authorizedFetch(settings.token),
  paced(RUN_EVERY_MS, () => runPanel.show(feed.view, feed.problem, feed.answered)),
);
const trainer = new WorkerTrainer();
const client = new Client(
  trainer,
  (handlers) => new Connection({ ...settings, url: socketUrl(settings.gateway), ...handlers }),
  changed,
);

/** A hidden page draws nothing, so state and title change at once and the rest with a coming frame. */
function changed(): void {
  const { view } = client;
  document.body.dataset.state = stateOf(view);
  document.title = titleOf(view);
  if (view.current !== null) feed.follow(view.current.task.run);
  redraw();
}

function draw(view: ClientView): void {
  const state = stateOf(view);
  const chip = byId('connection');
  chip.textContent = state;
  chip.dataset.status = state;
  start.disabled = view.running;
  pause.disabled = !view.running;
  const problem = byId('problem');
  problem.textContent = view.problem;
  problem.hidden = view.problem === '';
  taskPanel.show(view);
  byId('facts').textContent = factsOf(view);
}

/** idle, connecting, waiting, training, paused or error. */
function stateOf(view: ClientView): string {
  if (view.stuck) return 'error';
  if (view.current !== null) return 'training';
  if (!view.running) return view.connection === 'closed' ? 'idle' : 'paused';
  return view.connection === 'open' ? 'waiting' : 'connecting';
}

function titleOf(view: ClientView): string {
  const { current, done } = view;
  if (current === null) return done === 0 ? 'fedbus' : `fedbus – ${done} done`;
  return `${percent(taskShare(current))} ${current.task.user} – fedbus`;
}

function factsOf(view: ClientView): string {
  const why = settings.isolated ? '' : ' (this page is not cross-origin isolated, so one thread)';
  const engine = view.engine === '' ? 'engine loading' : `${view.engine} (${view.engineReason})`;
  return `${settings.client} · ${engine}${why} · gateway ${new URL(settings.gateway).host}`;
}

start.onclick = () => client.start();
pause.onclick = () => client.pause();
document.onvisibilitychange = () => feed.watched(document.visibilityState === 'visible');
new LastingWorker(
  () => new Worker(new URL('./page/ticker.ts', import.meta.url), { type: 'module', name: 'ticker' }),
  () => {
    client.tick();
    feed.tick();
  },
  (reason) => trainer.onCrash(`the page's clock: ${reason}`),
);
addEventListener('pagehide', () => client.leave());
trainer.post({
  type: 'settings',
  settings: {
    objectsFolder: new URL('objects/', settings.gateway).href,
    token: settings.token,
    wasmFolder: new URL('./', document.baseURI).href,
    threads: settings.threads,
    engine: settings.engine,
  },
});
if (settings.autostart) client.start();
runPanel.show(feed.view, feed.problem, feed.answered);
changed();
