// Numbers and names, as people read them.

export const count = (number) => number.toLocaleString("en-US");

export const plural = (number, one, many = `${one}s`) => `${count(number)} ${number === 1 ? one : many}`;

export function metres(value) {
  if (value < 10) return `${value.toFixed(1)} m`;
  if (value < 1000) return `${Math.round(value)} m`;
  return `${(value / 1000).toFixed(value < 10_000 ? 1 : 0)} km`;
}

export function duration(milliseconds) {
  if (milliseconds < 10) return `${milliseconds.toFixed(1)} ms`;
  if (milliseconds < 1000) return `${Math.round(milliseconds)} ms`;
  return `${(milliseconds / 1000).toFixed(2)} s`;
}

export const size = (bytes) => (bytes < 1e6 ? `${Math.ceil(bytes / 1e3)} kB` : `${(bytes / 1e6).toFixed(1)} MB`);

export const position = (lat, lon, digits = 5) => `${lat.toFixed(digits)}, ${lon.toFixed(digits)}`;

export const fileName = (path) => path.split("/").pop();

export const placeName = (place) => place.name ?? `Place ${place.id}`;

export const when = (takenAt) => takenAt.replace("T", " ");

const WINDS = ["N", "NE", "E", "SE", "S", "SW", "W", "NW"];

export const heading = (degrees) => `${Math.round(degrees)}° ${WINDS[Math.round(degrees / 45) % 8]}`;

/** How much of the photo asked about was found in this one. */
export const matched = (photo) => plural(photo.inliers, "matched feature");

/** What is known about a photo, in one line. */
export function aboutPhoto(photo) {
  const parts = [];
  if (photo.score !== undefined) parts.push(`score ${photo.score.toFixed(3)}`);
  if (photo.inliers !== undefined && photo.inliers !== null) parts.push(matched(photo));
  if (photo.taken_at) parts.push(when(photo.taken_at));
  if (photo.heading !== null && photo.heading !== undefined) parts.push(`looking ${heading(photo.heading)}`);
  if (photo.lat !== null && photo.lon !== null) parts.push(position(photo.lat, photo.lon));
  return parts.join(" · ");
}
