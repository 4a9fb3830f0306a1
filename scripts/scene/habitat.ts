/** Colors and density of a kind of place. */
export interface Habitat {
  name: string;
  /** Ground colors, dark to light, mixed by noise. */
  ground: readonly [string, string, string];
  trail: string;
  /** Backdrop foliage, dark to light. */
  foliage: readonly [string, string, string];
  bark: string;
  leaf: readonly [string, string, string];
  grass: readonly [string, string, string];
  /** Share of the backdrop that lets the sky through, in [0, 1]. */
  openness: number;
  trunks: readonly [far: number, middle: number];
  shrubs: number;
  tussocks: number;
  rocks: number;
  /** Share of stations of this kind with a fallen trunk. */
  logShare: number;
}

export const HABITATS: readonly Habitat[] = [
  {
    name: "beech wood",
    ground: ["#3d2c1f", "#6b4e36", "#97764f"],
    trail: "#86705a",
    foliage: ["#1f2f17", "#3f5c28", "#7d9a4a"],
    bark: "#6f6a62",
    leaf: ["#2f4a1f", "#4b6d2c", "#74923f"],
    grass: ["#3f5427", "#5d7433", "#87954e"],
    openness: 0.22,
    trunks: [16, 5],
    shrubs: 5,
    tussocks: 14,
    rocks: 2,
    logShare: 0.5,
  },
  {
    name: "spruce wood",
    ground: ["#33291f", "#57452f", "#77623f"],
    trail: "#6f5f4b",
    foliage: ["#141f17", "#263a29", "#49614a"],
    bark: "#5a4636",
    leaf: ["#24391f", "#365231", "#577348"],
    grass: ["#3c5230", "#587139", "#7d8a4b"],
    openness: 0.12,
    trunks: [26, 6],
    shrubs: 4,
    tussocks: 10,
    rocks: 4,
    logShare: 0.6,
  },
  {
    name: "meadow edge",
    ground: ["#3f4d24", "#667339", "#98965a"],
    trail: "#8d7c5c",
    foliage: ["#22351a", "#45622c", "#7a9448"],
    bark: "#665848",
    leaf: ["#35502a", "#56762f", "#86a04a"],
    grass: ["#4d6429", "#748339", "#a8a262"],
    openness: 0.5,
    trunks: [8, 2],
    shrubs: 7,
    tussocks: 34,
    rocks: 1,
    logShare: 0.2,
  },
  {
    name: "dry pine slope",
    ground: ["#5b4730", "#8a6f4b", "#b39a6d"],
    trail: "#a48c68",
    foliage: ["#2c3a22", "#51633a", "#87935c"],
    bark: "#7d5a43",
    leaf: ["#44522e", "#66703f", "#8f9358"],
    grass: ["#77693c", "#9a8a50", "#c0ae74"],
    openness: 0.34,
    trunks: [14, 4],
    shrubs: 6,
    tussocks: 22,
    rocks: 7,
    logShare: 0.3,
  },
];
