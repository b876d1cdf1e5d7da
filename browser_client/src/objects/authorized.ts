/** `fetch` that shows the join token to the gateway. */
export function authorizedFetch(token: string): typeof fetch {
  if (token === '') return (...args) => fetch(...args);
  return (input, init) => {
    const headers = new Headers(init?.headers);
    headers.set('authorization', `Bearer ${token}`);
    return fetch(input, { ...init, headers });
  };
}
