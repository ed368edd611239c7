import { fill, h } from './html.ts';
import type { View } from './parts.ts';
import { logIn } from './store.ts';

const TO_LOOK =
  'This server requires a token: an observer’s to read, an operator’s to stop and resume runs as well.';

/** Asks for a token, once; from then on the browser has a cookie that no script can read. */
export function loginView(onDone: () => void, { words = TO_LOOK, work = false } = {}): View {
  const problem = h('p', { class: 'problem', role: 'alert', id: 'token-problem' });
  const input = h('input', {
    type: 'password',
    id: 'token',
    autocomplete: 'current-password',
    required: true,
    spellcheck: 'false',
    'aria-describedby': 'token-problem',
  });
  const button = h('button', { class: 'button primary', type: 'submit' }, 'Log in');
  const form = h(
    'form',
    {
      class: 'card login',
      onSubmit: async (event) => {
        event.preventDefault();
        button.disabled = true;
        fill(problem);
        try {
          await logIn(input.value.trim(), work);
          input.value = '';
          onDone();
        } catch (error) {
          fill(
            problem,
            error instanceof TypeError ? 'The server does not answer.' : (error as Error).message,
          );
          input.focus();
        } finally {
          button.disabled = false;
        }
      },
    },
    h('h1', {}, 'Log in'),
    h('p', { class: 'muted' }, words),
    h('label', { for: 'token' }, 'Token'),
    input,
    problem,
    button,
  );
  return { title: 'Log in', element: form, update: () => {} };
}
