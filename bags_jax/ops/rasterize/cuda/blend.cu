// Front-to-back blending of the intersections of each tile, and its gradient. Compiled once for each number of
// CHANNELS.
//
// A block handles one tile of one camera, a warp one patch of the tile, a lane some pixels of one column of the patch,
// so that terms in x alone are computed once. Gaussians come in batches through shared memory. The thread that fetches
// a Gaussian finds the patches that its ellipse touches. A warp walks along the set bits of its own mask and skips
// Gaussians that only touch other patches at no cost. Patches have 8 x 8 px forward. They have 8 x 16 px where the cost
// of a Gaussian before its first pixel is high: with many features, and backward, where the warp sums.
//
// The gradient walks front to back again and updates a running remainder, the sum over the Gaussians still to come:
//   dL/dalpha_i = T_i (c_i . g) - (sum over j > i of w_j c_j . g) / (1 - alpha_i),    w_i = T_i alpha_i,
//   dL/dsigma_i = -alpha_i dL/dalpha_i = w_i ((sum over j > i of w_j c_j . g) / T_(i+1) - c_i . g).
// The forward pass stores nothing per pixel except the image.
#include "device.cuh"

constexpr int FORWARD_PIXELS = CHANNELS <= 4 ? 2 : 4;  // of a lane, in one column
constexpr int BACKWARD_PIXELS = 4;
constexpr int PATCH_WIDTH = 8;                         // px
constexpr int LANE_ROWS = WARP / PATCH_WIDTH;          // distance of the pixels of a lane
constexpr int GEOMETRY = 6;                            // x, y, three terms of the exponent, opacity
constexpr int QUADS = (GEOMETRY + CHANNELS + 3) / 4;   // float4s of a Gaussian
constexpr int SUMS = GEOMETRY + CHANNELS;              // values of the gradient of a Gaussian
constexpr int FINISH_THREADS = 256;

// Distribution of a tile over the threads of a block.
template <int PIXELS>
struct Patches {
  static constexpr int HEIGHT = LANE_ROWS * PIXELS;  // px
  static constexpr int COUNT = TILE * TILE / (PATCH_WIDTH * HEIGHT);
  static constexpr int THREADS = COUNT * WARP;
  static constexpr int WORDS = THREADS / WARP;  // words of the mask of a patch: a batch has one Gaussian per thread

  // First pixel of a patch relative to the first pixel of the tile, px.
  static __device__ __forceinline__ int x(int patch) { return patch % (TILE / PATCH_WIDTH) * PATCH_WIDTH; }
  static __device__ __forceinline__ int y(int patch) { return patch / (TILE / PATCH_WIDTH) * HEIGHT; }
};

struct View {
  int gaussians, capacity;  // of one camera
  int columns, tiles;
  int width, height;  // px
  int rows;           // rows of gradients of one camera
};

__device__ __forceinline__ View read_view(const int* sizes) {
  return {sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5], sizes[6]};
}

// A Gaussian in memory: alpha = opacity * 2^(dx (xx dx + xy dy) + yy dy^2), d = mean - pixel.
union Splat {
  struct {
    float x, y, xx, xy, yy, opacity;
    float features[4 * QUADS - GEOMETRY];
  };
  float4 quads[QUADS];
};

template <int PIXELS>
struct Batch {
  using Split = Patches<PIXELS>;
  Splat splats[Split::THREADS];
  unsigned touched[Split::COUNT][Split::WORDS];  // bit k of word w: Gaussian 32 w + k touches the patch
};

// Position of the pixels of a lane.
template <int PIXELS>
struct Place {
  int tile_x, tile_y;  // first pixel of the tile, px
  int x, y;            // of the lane
  int patch;

  __device__ __forceinline__ explicit Place(const View& view) {
    const int lane = threadIdx.x % WARP, tile = blockIdx.x;
    patch = threadIdx.x / WARP;
    tile_x = tile % view.columns * TILE;
    tile_y = tile / view.columns * TILE;
    x = tile_x + Patches<PIXELS>::x(patch) + lane % PATCH_WIDTH;
    y = tile_y + Patches<PIXELS>::y(patch) + lane / PATCH_WIDTH;
  }

  __device__ __forceinline__ bool inside(const View& view, int p) const {
    return x < view.width && y + p * LANE_ROWS < view.height;
  }

  __device__ __forceinline__ size_t pixel(const View& view, int p) const {
    return (size_t(blockIdx.y) * view.height + y + p * LANE_ROWS) * view.width + x;
  }
};

// Extent of a Gaussian. Approximations are enough: the exponent is flat at its maximum, and `touches` has some slack.
struct Reach {
  float toward_y;  // dy of the maximum of the exponent in a column of pixels, per px of dx
  float toward_x;  // dx of the maximum in a row, per px of dy
  float least;     // exponent at MIN_ALPHA

  __device__ __forceinline__ explicit Reach(const Splat& s)
      : toward_y(__fdividef(-0.5f * s.xy, s.yy)), toward_x(__fdividef(-0.5f * s.xy, s.xx)),
        least(-__log2f(s.opacity * (1.0f / MIN_ALPHA))) {}
};

// Returns whether a Gaussian has alpha >= MIN_ALPHA between the pixel centres of a patch that begins at (left, top).
// The exponent is concave: its maximum over the rectangle is at the mean, or on one of the two sides that face the
// mean.
__device__ __forceinline__ bool touches(const Splat& s, const Reach& reach, float left, float top, int height) {
  const float right = left + (PATCH_WIDTH - 1), bottom = top + (height - 1);
  const float dx = s.x - clamp(s.x, left, right), dy = s.y - clamp(s.y, top, bottom);
  const float best_dy = clamp(reach.toward_y * dx, s.y - bottom, s.y - top);
  const float best_dx = clamp(reach.toward_x * dy, s.x - right, s.x - left);
  const float beside = fmaf(dx, fmaf(s.xx, dx, s.xy * best_dy), s.yy * best_dy * best_dy);
  const float above = fmaf(dy, fmaf(s.yy, dy, s.xy * best_dx), s.xx * best_dx * best_dx);
  // Rounding must not lose a pixel: for thin Gaussians terms cancel that are far larger than their sum.
  const float size = fmaf(s.xx, fmaf(dx, dx, best_dx * best_dx), s.yy * fmaf(dy, dy, best_dy * best_dy));
  return fmaxf(beside, above) + fmaf(-1e-6f, size, 1e-3f) >= reach.least;
}

// Fetches the Gaussian `id` (-1: none) for this thread, and sets its bits in the masks of the patches.
template <int PIXELS>
__device__ __forceinline__ void fetch(
    Batch<PIXELS>& batch, const View& view, const float4* splats, int id, const Place<PIXELS>& place) {
  using Split = Patches<PIXELS>;
  const int me = threadIdx.x, word = me / WARP;
  Splat splat{};
  if (id >= 0) {
    const float4* row = splats + (size_t(blockIdx.y) * view.gaussians + id) * QUADS;
#pragma unroll
    for (int q = 0; q < QUADS; ++q) batch.splats[me].quads[q] = splat.quads[q] = row[q];
  }
  const Reach reach(splat);
#pragma unroll
  for (int patch = 0; patch < Split::COUNT; ++patch) {
    const float left = place.tile_x + Split::x(patch) + 0.5f, top = place.tile_y + Split::y(patch) + 0.5f;
    const unsigned touched = __ballot_sync(ALL_LANES, id >= 0 && touches(splat, reach, left, top, Split::HEIGHT));
    if (me % WARP == 0) batch.touched[patch][word] = touched;
  }
}

// The exponent of one Gaussian at the pixels of one lane: terms of the column, then of each pixel.
struct Column {
  float dy, linear, constant, yy, opacity;

  __device__ __forceinline__ Column(const Splat& s, float dx, float first_dy) {
    dy = first_dy;
    linear = s.xy * dx;
    constant = s.xx * dx * dx;
    yy = s.yy;
    opacity = s.opacity;
  }

  __device__ __forceinline__ float offset(int p) const { return dy - p * LANE_ROWS; }

  // Alpha before the clamp; 0 where the Gaussian is skipped.
  __device__ __forceinline__ float falloff(int p) const {
    const float power = fmaf(offset(p), fmaf(yy, offset(p), linear), constant);
    const float raw = opacity * exp2_approx(power);
    return power <= 0.0f && raw >= MIN_ALPHA ? raw : 0.0f;
  }
};

// Returns the weight of a Gaussian at one pixel and updates the transmittance `light`. A pixel stops before the
// Gaussian that would lower its transmittance to MIN_TRANSMITTANCE: then the weight is 0, and `light` becomes negative.
__device__ __forceinline__ float absorb(float alpha, float& light) {
  const float behind = fmaf(-alpha, light, light);
  const bool goes_on = behind > MIN_TRANSMITTANCE;
  const float weight = goes_on ? alpha * light : 0.0f;
  light = goes_on ? behind : -fabsf(light);
  return weight;
}

template <int PIXELS>
__device__ __forceinline__ bool any_positive(const float (&values)[PIXELS]) {
  float most = values[0];
#pragma unroll
  for (int p = 1; p < PIXELS; ++p) most = fmaxf(most, values[p]);
  return most > 0.0f;
}

// Grid of both kernels: x = tile, y = camera.
KERNEL __launch_bounds__(Patches<FORWARD_PIXELS>::THREADS) blend_forward(
    const int* sizes, const int* starts, const int* ids, const float4* splats, float* colors, float* alphas) {
  constexpr int PIXELS = FORWARD_PIXELS;
  using Split = Patches<PIXELS>;
  __shared__ Batch<PIXELS> batch;
  const View view = read_view(sizes);
  const Place<PIXELS> place(view);
  const int* bounds = starts + size_t(blockIdx.y) * (view.tiles + 1) + blockIdx.x;
  const int end = bounds[1];
  ids += size_t(blockIdx.y) * view.capacity;

  float light[PIXELS], sums[PIXELS][CHANNELS];
#pragma unroll
  for (int p = 0; p < PIXELS; ++p) {
    light[p] = place.inside(view, p) ? 1.0f : -1.0f;
#pragma unroll
    for (int c = 0; c < CHANNELS; ++c) sums[p][c] = 0.0f;
  }
  for (int first = bounds[0]; first < end; first += Split::THREADS) {
    if (!__syncthreads_or(any_positive(light))) break;  // a barrier, too: no warp still reads the last batch
    const int next = first + threadIdx.x;
    fetch(batch, view, splats, next < end ? ids[next] : -1, place);
    __syncthreads();
    for (int word = 0; word < Split::WORDS; ++word) {
      if (!__any_sync(ALL_LANES, any_positive(light))) break;
      for (unsigned todo = batch.touched[place.patch][word]; todo; todo &= todo - 1) {
        const Splat splat = batch.splats[word * WARP + __ffs(todo) - 1];
        const Column column(splat, splat.x - (place.x + 0.5f), splat.y - (place.y + 0.5f));
#pragma unroll
        for (int p = 0; p < PIXELS; ++p) {
          const float weight = absorb(fminf(column.falloff(p), MAX_ALPHA), light[p]);
#pragma unroll
          for (int c = 0; c < CHANNELS; ++c) sums[p][c] = fmaf(weight, splat.features[c], sums[p][c]);
        }
      }
    }
  }
#pragma unroll
  for (int p = 0; p < PIXELS; ++p) {
    if (!place.inside(view, p)) continue;
    const size_t pixel = place.pixel(view, p);
#pragma unroll
    for (int c = 0; c < CHANNELS; ++c) colors[pixel * CHANNELS + c] = sums[p][c];
    alphas[pixel] = 1.0f - fabsf(light[p]);
  }
}

// Sums COUNT values over a warp in one butterfly. At each step two lanes exchange halves of their values, and each
// continues with the sums of one half. It takes about COUNT + 2 shuffles instead of 5 COUNT.
template <int COUNT, int MASK>
__device__ __forceinline__ void fold(float* values, int lane) {
  constexpr int HALF = (COUNT + 1) / 2;
  const bool upper = lane & MASK;
#pragma unroll
  for (int i = 0; i < HALF; ++i) {
    float keep = values[i], give = keep;
    if (i + HALF < COUNT) {  // else both lanes continue with the same sum
      keep = upper ? values[i + HALF] : values[i];
      give = upper ? values[i] : values[i + HALF];
    }
    values[i] = keep + __shfl_xor_sync(ALL_LANES, give, MASK);
  }
  if constexpr (MASK > 1) fold<HALF, MASK / 2>(values, lane);
}

// Returns which of the COUNT sums a lane holds after fold; -1 if another lane also holds it.
template <int COUNT, int MASK>
__device__ __forceinline__ int folded(int lane) {
  constexpr int HALF = (COUNT + 1) / 2;
  int index = 0;
  if constexpr (MASK > 1) index = folded<HALF, MASK / 2>(lane);
  if (index < 0 || !(lane & MASK)) return index;
  return index + HALF < COUNT ? index + HALF : -1;
}

// State of one pixel during the walk.
struct Ray {
  float light;              // transmittance; negative: stopped
  float remainder;          // sum of weight * (feature . cotangent) of the Gaussians still to come
  float of_alpha;           // cotangents
  float of_color[CHANNELS];
};

template <int PIXELS>
__device__ __forceinline__ Ray start_ray(
    const View& view, const Place<PIXELS>& place, int p, const float* colors, const float* alphas,
    const float* of_colors, const float* of_alphas) {
  Ray ray{-1.0f, 0.0f, 0.0f, {}};
  if (!place.inside(view, p)) return ray;
  const size_t pixel = place.pixel(view, p);
  ray.light = 1.0f;
  ray.of_alpha = of_alphas[pixel];
  ray.remainder = ray.of_alpha * alphas[pixel];
#pragma unroll
  for (int c = 0; c < CHANNELS; ++c) {
    ray.of_color[c] = of_colors[pixel * CHANNELS + c];
    ray.remainder = fmaf(ray.of_color[c], colors[pixel * CHANNELS + c], ray.remainder);
  }
  return ray;
}

// Returns dL/dsigma of one Gaussian at one pixel, and its weight. Opacity is blended as one more channel, whose feature
// is 1.
__device__ __forceinline__ float trace(Ray& ray, const Splat& splat, float raw, float& weight) {
  weight = absorb(fminf(raw, MAX_ALPHA), ray.light);
  float toward = ray.of_alpha;
#pragma unroll
  for (int c = 0; c < CHANNELS; ++c) toward = fmaf(splat.features[c], ray.of_color[c], toward);
  ray.remainder = fmaf(-weight, toward, ray.remainder);
  const float slope = weight * fmaf(ray.remainder, reciprocal_approx(ray.light), -toward);
  return raw < MAX_ALPHA ? slope : 0.0f;  // 0 where alpha is clamped; the weight is 0 where the pixel has stopped
}

// Sums the gradient of one Gaussian over the pixels of a lane: moments of dL/dsigma about its mean, and features.
template <int PIXELS>
__device__ __forceinline__ void trace_all(
    Ray (&rays)[PIXELS], const Splat& splat, const Column& column, const float (&raw)[PIXELS], float dx,
    float* values) {
  float weight[PIXELS];
  float s = trace(rays[0], splat, raw[0], weight[0]), sy = s * column.offset(0), syy = sy * column.offset(0);
#pragma unroll
  for (int p = 1; p < PIXELS; ++p) {
    const float slope = trace(rays[p], splat, raw[p], weight[p]), slope_y = slope * column.offset(p);
    s += slope;
    sy += slope_y;
    syy = fmaf(slope_y, column.offset(p), syy);
  }
  const float sx = s * dx;
  const float moments[GEOMETRY] = {s, sx, sy, sx * dx, sy * dx, syy};
#pragma unroll
  for (int k = 0; k < GEOMETRY; ++k) values[k] = moments[k];
#pragma unroll
  for (int c = 0; c < CHANNELS; ++c) {
    values[GEOMETRY + c] = weight[0] * rays[0].of_color[c];
#pragma unroll
    for (int p = 1; p < PIXELS; ++p) values[GEOMETRY + c] = fmaf(weight[p], rays[p].of_color[c], values[GEOMETRY + c]);
  }
}

template <int PIXELS>
__device__ __forceinline__ bool any_light(const Ray (&rays)[PIXELS]) {
  float light[PIXELS];
#pragma unroll
  for (int p = 0; p < PIXELS; ++p) light[p] = rays[p].light;
  return any_positive(light);
}

template <int PIXELS>
struct Gradients {
  using Split = Patches<PIXELS>;
  float sums[Split::THREADS][Split::COUNT][SUMS];  // by Gaussian of the batch and patch, if `touched` has the bit
  int rows[Split::THREADS];                        // destination of the sum over the patches
};

// Sums the patches in their order and adds the sums to global memory. If each intersection has its own row, a row gets
// one addition only, and the result does not depend on the order of blocks.
template <int PIXELS>
__device__ __forceinline__ void scatter(
    const Batch<PIXELS>& batch, const Gradients<PIXELS>& gradients, int count, float* to) {
  using Split = Patches<PIXELS>;
  for (int i = threadIdx.x; i < count * SUMS; i += Split::THREADS) {
    const int k = i / SUMS, value = i % SUMS;
    float sum = 0.0f;
    bool any = false;
#pragma unroll
    for (int patch = 0; patch < Split::COUNT; ++patch) {
      if (!(batch.touched[patch][k / WARP] >> k % WARP & 1)) continue;
      sum += gradients.sums[k][patch][value];
      any = true;
    }
    if (any) atomicAdd(to + size_t(gradients.rows[k]) * SUMS + value, sum);
  }
}

// `rows`: row of the gradient of each intersection, which is its Gaussian or its slot. `gradient` uses the memory of
// `zeros`.
KERNEL __launch_bounds__(Patches<BACKWARD_PIXELS>::THREADS, 8) blend_backward(
    const int* sizes, const int* starts, const int* ids, const int* rows, const float4* splats, const float* colors,
    const float* alphas, const float* of_colors, const float* of_alphas, const float* zeros, float* gradient) {
  constexpr int PIXELS = BACKWARD_PIXELS;
  using Split = Patches<PIXELS>;
  __shared__ Batch<PIXELS> batch;
  __shared__ Gradients<PIXELS> gradients;
  const View view = read_view(sizes);
  const Place<PIXELS> place(view);
  const int lane = threadIdx.x % WARP, slot = folded<SUMS, WARP / 2>(lane);
  const int* bounds = starts + size_t(blockIdx.y) * (view.tiles + 1) + blockIdx.x;
  const int end = bounds[1];
  ids += size_t(blockIdx.y) * view.capacity;
  rows += size_t(blockIdx.y) * view.capacity;
  gradient += size_t(blockIdx.y) * view.rows * SUMS;
  float* own = &gradients.sums[0][place.patch][max(slot, 0)];

  Ray rays[PIXELS];
#pragma unroll
  for (int p = 0; p < PIXELS; ++p) rays[p] = start_ray(view, place, p, colors, alphas, of_colors, of_alphas);
  for (int first = bounds[0]; first < end; first += Split::THREADS) {
    if (!__syncthreads_or(any_light(rays))) break;  // a barrier, too: no warp still reads the last batch
    const int next = first + threadIdx.x;
    fetch(batch, view, splats, next < end ? ids[next] : -1, place);
    if (next < end) gradients.rows[threadIdx.x] = rows[next];
    __syncthreads();
    for (int word = 0; word < Split::WORDS; ++word) {
      const bool lit = __any_sync(ALL_LANES, any_light(rays));
      unsigned added = 0;
      for (unsigned rest, todo = lit ? batch.touched[place.patch][word] : 0; todo; todo = rest) {
        rest = todo & (todo - 1);
        const int k = word * WARP + __ffs(todo) - 1;
        const Splat splat = batch.splats[k];
        const float dx = splat.x - (place.x + 0.5f);
        const Column column(splat, dx, splat.y - (place.y + 0.5f));
        float raw[PIXELS];
#pragma unroll
        for (int p = 0; p < PIXELS; ++p) raw[p] = column.falloff(p);
        if (!__any_sync(ALL_LANES, any_positive(raw))) continue;  // it lies between the pixel centres
        float values[SUMS];
        trace_all(rays, splat, column, raw, dx, values);
        fold<SUMS, WARP / 2>(values, lane);
        if (slot >= 0) own[k * Split::COUNT * SUMS] = values[0];
        added |= todo ^ rest;
      }
      __syncwarp();
      if (lane == 0) batch.touched[place.patch][word] = added;
    }
    __syncthreads();
    scatter(batch, gradients, min(Split::THREADS, end - first), gradient);
  }
}

// Turns the sums of `blend_backward`, [gaussians][SUMS], into gradients. The sums are the moments 1, x, y, xx, xy, yy of
// dL/dsigma, where sigma = (a dx^2 + c dy^2) / 2 + b dx dy for the conic (a, b, c), and the gradients of the features.
KERNEL finish_gradient(const int* sizes, const float* conics, const float* opacities, const float* sums,
                       float* of_means, float* of_conics, float* of_opacities, float* of_features) {
  const size_t i = size_t(blockIdx.x) * FINISH_THREADS + threadIdx.x;
  if (i >= sizes[0]) return;
  const float* sum = sums + i * SUMS;
  const float a = conics[3 * i], b = conics[3 * i + 1], c = conics[3 * i + 2];
  of_means[2 * i] = a * sum[1] + b * sum[2];
  of_means[2 * i + 1] = c * sum[2] + b * sum[1];
  of_conics[3 * i] = 0.5f * sum[3];
  of_conics[3 * i + 1] = sum[4];
  of_conics[3 * i + 2] = 0.5f * sum[5];
  of_opacities[i] = -sum[0] / fmaxf(opacities[i], 1e-6f);
#pragma unroll
  for (int k = 0; k < CHANNELS; ++k) of_features[i * CHANNELS + k] = sum[GEOMETRY + k];
}
