// The endpoint: models, and chat completions as a stream of events.

const url = (path) => new URL(path, document.baseURI);

function headers(apiKey) {
  const bearer = apiKey ? { Authorization: `Bearer ${apiKey}` } : {};
  return { "Content-Type": "application/json", ...bearer };
}

/** An answer other than 200, with the server's own words. */
export class ApiError extends Error {
  constructor(status, error) {
    super(error?.message ?? `HTTP ${status}`);
    this.status = status;
    this.param = error?.param ?? null;
  }
}

async function refuse(response) {
  const body = await response.json().catch(() => null);
  throw new ApiError(response.status, body?.error);
}

/** Cards of the served models. */
export async function listModels(apiKey) {
  const response = await fetch(url("v1/models"), { headers: headers(apiKey) });
  if (!response.ok) await refuse(response);
  return (await response.json()).data;
}

/** Chunks of a streamed answer. Aborting `signal` frees the request on the server. */
export async function* streamChat(body, { apiKey, signal }) {
  const response = await fetch(url("v1/chat/completions"), {
    method: "POST",
    headers: headers(apiKey),
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  if (!response.ok) await refuse(response);
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ApiError(503, chunk.error);
    yield chunk;
  }
  throw new ApiError(503, { message: "the connection ended before the answer did" });
}

async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    held += value;
    const parts = held.split("\n\n");
    held = parts.pop();
    for (const part of parts) {
      if (part.startsWith("data: ")) yield part.slice(6);
    }
  }
}
