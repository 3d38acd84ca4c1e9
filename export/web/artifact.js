// An artefact's folder: rfc.json, the programs and the weights, each read once and checked against its checksum.

export const SCHEMA = 3;

/** Reads files of a folder that is served beside the page. */
export function served(folder) {
  return async (name) => {
    const where = `${folder}/${name}`;
    const answer = await fetch(where);
    if (!answer.ok) throw new Error(`${where}: ${answer.status} ${answer.statusText}; build the folder again`);
    return new Uint8Array(await answer.arrayBuffer());
  };
}

/** The content of a JSON file of the folder; an Error that names the file where it is none. */
export async function json(read, name) {
  const text = new TextDecoder().decode(await read(name));
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new Error(`${name}: no JSON: ${error.message}; copy it again`);
  }
}

/** The manifest of an engine that runs here: ONNX programs, the decision by this code (dispatch host) or in the program (cond). */
export async function readManifest(read) {
  const manifest = await json(read, "rfc.json");
  if (manifest.schema_version !== SCHEMA) {
    throw new Error(`rfc.json: schema version ${manifest.schema_version}, this page reads ${SCHEMA}; export again`);
  }
  if (manifest.backend !== "onnx") throw new Error(`rfc.json: for ${manifest.backend}; export with --backend onnx`);
  return manifest;
}

/** A file of the artefact, held against the manifest. */
export async function checked(read, name, spec) {
  const content = await read(name);
  if (content.length !== spec.bytes) throw new Error(`${name}: ${content.length} bytes, expected ${spec.bytes}; copy the artefact again`);
  if (!globalThis.crypto?.subtle) throw new Error("checksums need a secure page: open it on localhost or over https");
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", content));
  const found = Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
  if (found !== spec.sha256) throw new Error(`${name}: SHA-256 ${found.slice(0, 12)}..., expected ${spec.sha256.slice(0, 12)}...; copy it again`);
  return content;
}
