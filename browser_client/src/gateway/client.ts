/** The client's state machine: asks for tasks, has them trained, uploads the results, and survives cuts. */
import type { Connection, ConnectionOptions, ConnectionState } from './connection';
import { type Assignment, MAX_REASON, NO_FAULT, type ServerMessage, type Task, type Welcome } from '../words/protocol';
import type { Images } from '../training/safetensors';
import type { TaskProgress } from '../training/task';
import type { Trainer, TrainerEvent } from '../training/trainer';
import { Upload } from './upload';

/** One task trains while the next one is fetched. */
const TASKS_TO_TRAIN = 2;
/** Slow uploads hold the client back before the gateway would. */
const TASKS_IN_HAND = 4;
/** So many tasks in a row that failed here would fail again: the client stops taking more from the others. */
const FAILURES_IN_A_ROW = 3;
/** Errors that stay when the client comes back as it is. */
const FINAL_CODES = ['token', 'role', 'name_taken', 'version', 'replaced'];

/** A task under a lease, and what is known of it. */
export interface Held {
  readonly lease: string;
  readonly task: Task;
  stage: 'queued' | 'training' | 'uploading';
  images: Images | null;
  classes: readonly string[];
  predictions: readonly number[];
  progress: TaskProgress | null;
  upload: Upload | null;
}

/** What the page shows. */
export interface ClientView {
  connection: ConnectionState;
  running: boolean;
  engine: string;
  /** Why it is this one. */
  engineReason: string;
  /** The task that trains. */
  current: Held | null;
  /** The last task whose images came: that before `current` while the images of that are on their way. */
  shown: Held | null;
  uploads: readonly Upload[];
  done: number;
  rejected: number;
  download: { readonly loaded: number; readonly size: number } | null;
  /** What went wrong last, or an empty text. */
  problem: string;
  /** Nothing goes on before the person does something. */
  stuck: boolean;
}

export type OpenConnection = (
  handlers: Pick<ConnectionOptions, 'engine' | 'resume' | 'onWelcome' | 'onMessage' | 'onState'>,
) => Connection;

export class Client {
  readonly view: ClientView = {
    connection: 'closed',
    running: false,
    engine: '',
    engineReason: '',
    current: null,
    shown: null,
    uploads: [],
    done: 0,
    rejected: 0,
    download: null,
    problem: '',
    stuck: false,
  };
  readonly #held = new Map<string, Held>();
  readonly #connection: Connection;
  #asked = false;
  #uploads = 0;
  #failures = 0;

  constructor(
    private readonly trainer: Trainer,
    open: OpenConnection,
    private readonly onChange: () => void,
  ) {
    trainer.onEvent = (event) => this.#trained(event);
    trainer.onCrash = (reason) => this.#stick(`the trainer stopped, reload the page: ${reason}`);
    this.#connection = open({
      engine: () => this.view.engine,
      resume: () => [...this.#held.keys()],
      onWelcome: (welcome) => this.#welcomed(welcome),
      onMessage: (message) => this.#heard(message),
      onState: (state) => this.#connected(state),
    });
  }

  /** Connects once the engine is there, and asks for tasks. */
  start(): void {
    this.view.running = true;
    this.view.stuck = false;
    this.view.problem = '';
    if (this.view.engine !== '') this.#connection.start();
    this.#goOn();
  }

  /** Finishes the task that trains; the others go back to the pool. */
  pause(): void {
    this.#stopTaking('the client paused');
    this.onChange();
  }

  /** The page goes for good: its tasks go to others at once. */
  leave(): void {
    this.#connection.send({ type: 'leave' });
  }

  tick(): void {
    this.#connection.tick();
    if (this.#connection.state !== 'open') return;
    for (const { upload } of this.#held.values()) upload?.tick(this.#connection);
  }

  #connected(state: ConnectionState): void {
    this.view.connection = state;
    if (state !== 'open') this.#asked = false;
    this.onChange();
  }

  #welcomed(welcome: Welcome): void {
    for (const lease of [...this.#held.keys()]) if (!welcome.resumed.includes(lease)) this.#drop(lease);
    for (const { upload } of this.#held.values()) upload?.begin(this.#connection);
    this.#goOn();
  }

  #heard(message: Exclude<ServerMessage, Welcome>): void {
    switch (message.type) {
      case 'assignment':
        this.#assigned(message);
        break;
      case 'upload.offset':
        this.#uploadNumbered(message.upload)?.offset(message.offset, this.#connection.chunkBytes, this.#connection);
        break;
      case 'upload.accepted':
        if (this.#held.delete(message.lease)) this.view.done += 1;
        break;
      case 'upload.rejected':
        this.#rejected(message);
        break;
      case 'task.revoked':
        this.#drop(message.lease);
        break;
      case 'error':
        this.#refused(message.code, message.message);
        break;
      case 'pong':
        return;
    }
    this.#goOn();
  }

  #rejected({ lease, code, reason }: Extract<ServerMessage, { type: 'upload.rejected' }>): void {
    const held = this.#held.delete(lease);
    if (NO_FAULT.includes(code)) return;
    if (held) this.view.rejected += 1;
    this.view.problem = `an update was not counted (${code}): ${reason}`;
  }

  #refused(code: string, message: string): void {
    if (FINAL_CODES.includes(code)) this.#stick(`${code}: ${message}`);
    // Leases end while their client speaks; the gateway says so by itself where it matters.
    else if (!code.startsWith('unknown_')) this.view.problem = `${code}: ${message}`;
  }

  #assigned({ lease, task }: Assignment): void {
    this.#asked = false;
    if (this.#held.has(lease)) return;
    const held: Held = {
      lease,
      task,
      stage: 'queued',
      images: null,
      classes: [],
      predictions: [],
      progress: null,
      upload: null,
    };
    this.#held.set(lease, held);
    if (!this.view.running) this.#giveBack(held, 'the client paused');
    else this.trainer.post({ type: 'prepare', lease, task });
  }

  #trained(event: TrainerEvent): void {
    if (event.type === 'ready') {
      this.view.engine = event.engine;
      this.view.engineReason = event.reason;
      if (this.view.running) this.#connection.start();
    } else if (event.type === 'unable') {
      this.#stick(event.reason);
    } else if (event.type === 'download') {
      this.view.download = event.loaded < event.ref.size ? { loaded: event.loaded, size: event.ref.size } : null;
    } else {
      const held = this.#held.get(event.lease);
      if (held !== undefined) this.#trainedTask(held, event);
    }
    this.#goOn();
  }

  #trainedTask(held: Held, event: Extract<TrainerEvent, { lease: string }>): void {
    switch (event.type) {
      case 'started':
        held.images = event.images;
        held.classes = event.classes;
        this.view.shown = held;
        break;
      case 'progress': {
        held.progress = event.progress;
        held.predictions = event.predictions;
        const { share: _, ...progress } = event.progress;
        this.#connection.send({ type: 'progress', lease: held.lease, ...progress });
        break;
      }
      case 'done': {
        this.#failures = 0;
        held.stage = 'uploading';
        this.#uploads += 1;
        held.upload = new Upload(held.lease, this.#uploads, event.bytes, event.sha256, event.metrics);
        held.upload.begin(this.#connection);
        break;
      }
      case 'dropped':
        this.#held.delete(held.lease);
        break;
      case 'failed':
        this.#failures += 1;
        this.#giveBack(held, event.reason);
        if (this.#failures >= FAILURES_IN_A_ROW) this.#stick(`${FAILURES_IN_A_ROW} tasks failed: ${event.reason}`);
        else this.view.problem = event.reason;
        break;
    }
  }

  /** Starts what can start: the next queued task, and the question for one more. */
  #goOn(): void {
    const tasks = [...this.#held.values()];
    const next = tasks.find((held) => held.stage === 'queued');
    if (next !== undefined && this.view.running && !tasks.some((held) => held.stage === 'training')) {
      next.stage = 'training';
      this.trainer.post({ type: 'run', lease: next.lease, task: next.task });
    }
    const toTrain = tasks.filter((held) => held.stage !== 'uploading').length;
    const room = toTrain < TASKS_TO_TRAIN && tasks.length < TASKS_IN_HAND;
    if (this.view.running && room && !this.#asked && this.#connection.state === 'open') {
      this.#asked = true;
      this.#connection.send({ type: 'ready' });
    }
    this.view.current = tasks.find((held) => held.stage === 'training') ?? null;
    this.view.uploads = tasks.flatMap(({ upload }) => upload ?? []);
    this.onChange();
  }

  /** The lease is over. A running task ends at its next step, and the next one starts then. */
  #drop(lease: string): void {
    const held = this.#held.get(lease);
    this.#held.delete(lease);
    if (held?.stage === 'training') this.trainer.post({ type: 'drop', lease });
  }

  #giveBack(held: Held, reason: string): void {
    this.#held.delete(held.lease);
    this.#connection.send({ type: 'task.failed', lease: held.lease, reason: reason.slice(0, MAX_REASON) });
  }

  #stopTaking(reason: string): void {
    this.view.running = false;
    for (const held of [...this.#held.values()]) if (held.stage === 'queued') this.#giveBack(held, reason);
  }

  #uploadNumbered(number: number): Upload | undefined {
    return [...this.#held.values()].find(({ upload }) => upload?.number === number)?.upload ?? undefined;
  }

  #stick(problem: string): void {
    this.view.stuck = true;
    this.view.problem = problem;
    this.#stopTaking('the client stopped');
    this.#connection.stop();
    this.onChange();
  }
}
