import { h, setText } from './html.ts';
import { Queries } from './queries.ts';
import { drawSoon } from './store.ts';

/** What a view reads from the server, and the line of the view that says what could not be read. */
export class ViewQueries extends Queries {
  readonly problem = h('p', { class: 'problem view-problem', role: 'status' });

  /** @param readersMax reads at the same time */
  constructor(readersMax?: number) {
    super((words) => setText(this.problem, words), drawSoon, readersMax);
  }
}
