// What the charts show: the stretches of time that the server has told of, oldest first.

const KEPT_MAX = 900;

export class History {
  constructor() {
    this.points = [];
  }

  take({ reset, points }) {
    this.points = (reset ? points : this.points.concat(points)).slice(-KEPT_MAX);
  }

  since(ms) {
    return this.points.filter((point) => point.at_ms > ms);
  }
}
