// The API as the page asks it: the models, and captions as they are decoded.

/** An answer that is not a caption; `field` names the request's field that was wrong, if one was. */
export class ApiError extends Error {
  constructor(status, { message, field = null }) {
    super(message);
    Object.assign(this, { status, field });
  }
}

// Relative, so that the page also works below a path of a proxy.
export const url = (path) => new URL(path, document.baseURI).href;

export async function listModels(key) {
  const response = await ask("v1/models", { headers: authorization(key) });
  return (await response.json()).data;
}

/**
 * The events of one caption: `{delta}` for each piece of text, then `{answer, stages}`.
 *
 * @param {Blob} file the image
 * @param {Object<string, string>} fields of the form
 * @param {string} key of the API; empty for none
 * @param {AbortSignal} signal
 */
export async function* caption(file, fields, key, signal) {
  const body = new FormData();
  body.append("file", file, file.name);
  for (const [name, value] of Object.entries({ ...fields, stream: "true" })) body.append(name, value);
  const response = await ask("v1/caption", { method: "POST", body, headers: authorization(key), signal });
  let whole = false;
  for await (const data of serverSentEvents(response.body)) {
    if (data === "[DONE]") break;
    const event = JSON.parse(data);
    if (event.error) throw new ApiError(response.status, event.error);
    if (event.delta !== undefined) yield event;
    else {
      whole = true;
      yield { answer: event, stages: Object.entries(event.timing_ms) };
    }
  }
  if (!whole) throw cutOff();
}

/** The shell command that sends the same request. */
export function curlCommand(fileName, fields, hasKey) {
  const parts = [`curl -sS ${shellQuoted(url("v1/caption"))}`];
  if (hasKey) parts.push('-H "Authorization: Bearer $RAYCAP_API_KEY"');
  // Inside curl's own quotes, as it reads ; and , in a bare name as its own.
  parts.push(`-F ${shellQuoted(`file=@"${fileName.replace(/["\\]/g, "\\$&")}"`)}`);
  // Not -F, which would read a value that begins with @ or < as a file's name.
  for (const [name, value] of Object.entries(fields)) parts.push(`--form-string ${shellQuoted(`${name}=${value}`)}`);
  return parts.join(" \\\n  ");
}

const shellQuoted = (text) => (/^[\w:/.=-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`);

const authorization = (key) => (key ? { Authorization: `Bearer ${key}` } : {});

async function ask(path, options) {
  let response;
  try {
    response = await fetch(url(path), options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, { message: "The server cannot be reached; see whether it runs, then try again." });
  }
  if (response.ok) return response;
  const body = await response.json().catch(() => ({}));
  throw new ApiError(response.status, body.error ?? { message: `${response.status} ${response.statusText}` });
}

async function* serverSentEvents(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let data = [];
  for (;;) {
    const { value, done } = await reader.read().catch((error) => {
      throw error.name === "AbortError" ? error : cutOff();
    });
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines.map((line) => line.replace(/\r$/, ""))) {
      if (line.startsWith("data:")) data.push(line.slice(5).trimStart());
      else if (line === "" && data.length) {
        yield data.join("\n");
        data = [];
      }
    }
  }
}

const cutOff = () => new ApiError(0, { message: "The connection ended before the caption was whole; try again." });
