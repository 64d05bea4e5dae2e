// The index's places, fetched once and kept until they may have changed.

import { getJSON } from "./api.js";

const PAGE = 1000;
let places = null;

/** All places, in the index's own order. */
export function loadPlaces() {
  places ??= fetchAll().catch((error) => {
    places = null;
    throw error;
  });
  return places;
}

/** Fetch them anew next time: a photo came or went. */
export function forgetPlaces() {
  places = null;
}

let snapshot = null;

/** Tell which snapshot answers now: with a new one, places may have changed. */
export function noteSnapshot(name) {
  if (snapshot !== null && snapshot !== name) forgetPlaces();
  snapshot = name;
}

async function fetchAll() {
  const found = [];
  for (;;) {
    const page = await getJSON(`v1/places?limit=${PAGE}&offset=${found.length}`);
    found.push(...page.places);
    if (!page.places.length || found.length >= page.total) return found;
  }
}
