// The bookkeeping of a generation; the lines of rfc/bookkeeping.py (`observe`, `advance`), against which it is tested.
#pragma once

namespace rfc {

// Where a generation stands.
struct Counts {
  float since = 0;    // steps since the last full one
  float gap = 0;      // steps between the two latest full ones; 0 while there is only one
  float anchors = 0;  // full steps so far
  float total = 0;    // the error that counts since the last full step
};

// The counts with the error of a step; it counts from the first full step of the generation on.
inline Counts observe(Counts counts, float eps) {
  if (counts.anchors > 0) counts.total += eps;
  return counts;
}

// The counts after a step.
inline Counts advance(Counts counts, bool is_full) {
  const float k = counts.since + 1;
  if (!is_full) return {k, counts.gap, counts.anchors, counts.total};
  return {0, counts.anchors > 0 ? k : 0, counts.anchors + 1, 0};
}

}  // namespace rfc
