import { codeVersion } from '../../server/fleet/code-version.ts';
import { checkToStandby, type ToStandby } from '../../server/standby/protocol.ts';
import type { Replication } from '../../server/standby/replication.ts';
import { Replicas } from '../../server/standby/standby.ts';
import type { ConnectionEvents } from '../../wire/connection.ts';
import type { Follow } from './simulated-cluster.ts';
import type { Simulation } from './simulator.ts';
import { copyOfFields, joinedBytes } from './virtual-network.ts';

/** The server's standby: its replicas, and the way between them. What arrives keeps its order. */
export class SimulatedStandby {
  readonly replicas = new Replicas();
  readonly #simulation: Simulation;
  readonly #events: ConnectionEvents;
  alive = true;
  #linked = true;
  #cutOff = false;
  #frames = 0;
  #toStandbyAt = 0;
  #toServerAt = 0;

  constructor(simulation: Simulation, replication: Replication, follow: Follow) {
    this.#simulation = simulation;
    this.#events = replication.accept(
      {
        open: true,
        bufferedBytes: 0,
        send: (message, parts = [], gone) => this.#send(message as ToStandby, parts, gone),
        ping: () => this.#later(() => this.#answer(() => this.#events.alive())),
        close: () => this.#hangUp(),
        terminate: () => this.#hangUp(),
      },
      'standby',
    );
    const address = { host: null, port: 1 };
    const hello = { type: 'follow', version: codeVersion(), ...follow, address };
    this.#answer(() => this.#events.message(hello, new Uint8Array(), null));
  }

  #send(message: ToStandby, parts: readonly Uint8Array[], gone?: () => void): void {
    const header = checkToStandby(copyOfFields(message));
    const bytes = joinedBytes(parts);
    gone?.();
    this.#later(() => {
      if (!this.alive) return;
      this.replicas.take(header, bytes);
      if (message.type === 'leading') return;
      const carried = { type: 'carried', frames: ++this.#frames };
      this.#answer(() => this.#events.message(carried, new Uint8Array(), null));
    });
  }

  /** At the standby, in order. */
  #later(act: () => void): void {
    const simulation = this.#simulation;
    this.#toStandbyAt = Math.max(this.#toStandbyAt, simulation.now + simulation.delayMs(15));
    simulation.at(this.#toStandbyAt - simulation.now, () => this.#cutOff || act());
  }

  /** At the server, if it is the same one. */
  #answer(act: () => void): void {
    const simulation = this.#simulation;
    this.#toServerAt = Math.max(this.#toServerAt, simulation.now + simulation.delayMs(15));
    simulation.at(this.#toServerAt - simulation.now, () =>
      simulation.server.enter(() => this.#linked && this.alive && act()),
    );
  }

  /** kill -9, or its connection is cut: the server notices after a while, and another one comes. */
  die(noticedMs: number): void {
    if (!this.alive) return;
    this.alive = false;
    this.#simulation.at(noticedMs, () => this.#simulation.server.enter(() => this.#lost()));
  }

  #lost(): void {
    if (!this.#linked) return;
    this.#linked = false;
    this.#events.closed(1006, 'connection lost');
    this.#simulation.server.standbyGone();
  }

  /** By the server: it was silent for too long. */
  #hangUp(): void {
    if (!this.#linked) return;
    this.#linked = false;
    this.alive = false;
    this.#simulation.server.standbyGone();
  }

  /** What is under way may arrive all the same. */
  primaryDied(): void {
    this.#linked = false;
    this.#cutOff = this.#simulation.chance(0.7);
  }
}
