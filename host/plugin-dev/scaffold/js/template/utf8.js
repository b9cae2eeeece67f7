// UTF-8 without TextEncoder and TextDecoder, which belong to browsers and not to the language.

/** @returns {Uint8Array} The bytes of a text. */
export function toUtf8(text) {
  const bytes = [];
  for (const char of encodeURIComponent(text).match(/%..|[^]/g) ?? []) {
    bytes.push(char.length === 3 ? parseInt(char.slice(1), 16) : char.charCodeAt(0));
  }
  return new Uint8Array(bytes);
}

/** @returns {string} The text of bytes; each wrong sequence of bytes becomes the character U+FFFD. */
export function fromUtf8(bytes) {
  let text = "";
  for (let at = 0; at < bytes.length; ) {
    const first = bytes[at];
    const length = first < 0x80 ? 1 : first >= 0xf0 ? 4 : first >= 0xe0 ? 3 : 2;
    const part = Array.from(bytes.slice(at, at + length), (byte) => `%${byte.toString(16).padStart(2, "0")}`).join("");
    try {
      text += decodeURIComponent(part);
      at += length;
    } catch (error) {
      text += "\ufffd";
      at += 1;
    }
  }
  return text;
}
