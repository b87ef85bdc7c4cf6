// Structural similarity of two images, and its gradient in the first one (../reference.py).
//
// A block handles a patch of PATCH x PATCH px, one channel after another. It loads the patch and half a window around
// it, filters the rows of what it loaded, then the columns: no filtered image goes through global memory. There are no
// atomics: results are equal bit for bit in every run.
//
// Images are [height][width][channels] and interleaved; slopes, three for each pixel and channel, are [3][channels]
// [height][width]. Pixels beyond the border and pixels that are not valid count as 0. cuda_build.py defines WINDOW.
#include "device.cuh"

constexpr int PATCH = 16;
constexpr int THREADS = PATCH * PATCH;
constexpr int RADIUS = WINDOW / 2;
constexpr int SPAN = PATCH + 2 * RADIUS;  // px that a patch needs in a row or column

// The pixel of a thread, and the size of the images.
struct Place {
  int height, width, channels;
  int left, top;      // of what the block loads, px; may lie beyond the border
  int column, row;    // of the thread's pixel in its patch
  bool is_inside;     // the pixel lies in the image

  __device__ __forceinline__ explicit Place(const int* sizes)
      : height(sizes[0]), width(sizes[1]), channels(sizes[2]) {
    left = int(blockIdx.x) * PATCH - RADIUS;
    top = int(blockIdx.y) * PATCH - RADIUS;
    column = threadIdx.x % PATCH;
    row = threadIdx.x / PATCH;
    is_inside = left + RADIUS + column < width && top + RADIUS + row < height;
  }

  __device__ __forceinline__ int area() const { return height * width; }
  __device__ __forceinline__ int pixel() const { return (top + RADIUS + row) * width + left + RADIUS + column; }

  // Calls function(row, column, pixel) for each loaded pixel, of which the block's threads take turns; pixel is -1
  // beyond the border.
  template <typename Function>
  __device__ __forceinline__ void each(Function function) const {
    for (int i = threadIdx.x; i < SPAN * SPAN; i += THREADS) {
      const int r = i / SPAN, q = i % SPAN, y = top + r, x = left + q;
      const bool is_image = y >= 0 && y < height && x >= 0 && x < width;
      function(r, q, is_image ? y * width + x : -1);
    }
  }
};

struct Window {
  float taps[WINDOW];

  __device__ __forceinline__ explicit Window(const float* constants) {
#pragma unroll
    for (int k = 0; k < WINDOW; ++k) taps[k] = constants[k];
  }

  // Filters column `column` of the filtered rows around row `row`.
  __device__ __forceinline__ float down(const float (*rows)[PATCH], int row, int column) const {
    float sum = 0.0f;
#pragma unroll
    for (int k = 0; k < WINDOW; ++k) sum = fmaf(taps[k], rows[row + k][column], sum);
    return sum;
  }
};

// Sums the similarities of each block's pixels, and computes the slope of each similarity in the filtered x, x * x and
// x * y.
KERNEL compare(const int* sizes, const float* constants, const float* image, const float* target, const float* valid,
               float* sums, float* slopes) {
  __shared__ float x[SPAN][SPAN], y[SPAN][SPAN];
  __shared__ float rows[5][SPAN][PATCH];  // filtered x, y, x * x, y * y, x * y
  __shared__ float partial[THREADS];
  const Place place(sizes);
  const Window window(constants);
  const float c1 = constants[WINDOW], c2 = constants[WINDOW + 1];
  float total = 0.0f;
  for (int c = 0; c < place.channels; ++c) {
    place.each([&](int r, int q, int pixel) {
      const bool is_used = pixel >= 0 && valid[pixel] != 0.0f;
      x[r][q] = is_used ? image[pixel * place.channels + c] : 0.0f;
      y[r][q] = is_used ? target[pixel * place.channels + c] : 0.0f;
    });
    __syncthreads();
    for (int i = threadIdx.x; i < SPAN * PATCH; i += THREADS) {
      const int r = i / PATCH, q = i % PATCH;
      float sum[5] = {};
#pragma unroll
      for (int k = 0; k < WINDOW; ++k) {
        const float a = x[r][q + k], b = y[r][q + k], wa = window.taps[k] * a, wb = window.taps[k] * b;
        sum[0] += wa;
        sum[1] += wb;
        sum[2] = fmaf(wa, a, sum[2]);
        sum[3] = fmaf(wb, b, sum[3]);
        sum[4] = fmaf(wa, b, sum[4]);
      }
#pragma unroll
      for (int j = 0; j < 5; ++j) rows[j][r][q] = sum[j];
    }
    __syncthreads();
    if (place.is_inside) {
      float of[5];
#pragma unroll
      for (int j = 0; j < 5; ++j) of[j] = window.down(rows[j], place.row, place.column);
      const float mean_x = of[0], mean_y = of[1], squares = mean_x * mean_x + mean_y * mean_y;
      const float light = 2.0f * mean_x * mean_y + c1, light_below = squares + c1;
      const float structure = 2.0f * (of[4] - mean_x * mean_y) + c2, structure_below = of[2] + of[3] - squares + c2;
      const float below = 1.0f / (light_below * structure_below);
      const bool counts = valid[place.pixel()] != 0.0f;
      const float similarity = counts ? light * structure * below : 0.0f;
      const float in_xx = counts ? -similarity / structure_below : 0.0f;
      const float in_xy = counts ? 2.0f * light * below : 0.0f;
      const float in_x = counts ? 2.0f * mean_y * (structure - light) * below -
                                      2.0f * mean_x * (similarity / light_below + in_xx)
                                : 0.0f;
      total += similarity;
      float* slope = slopes + size_t(c) * place.area() + place.pixel();
      const size_t plane = size_t(place.channels) * place.area();
      slope[0] = in_x;
      slope[plane] = in_xx;
      slope[2 * plane] = in_xy;
    }
  }
  partial[threadIdx.x] = total;
  for (int half = THREADS / 2; half > 0; half /= 2) {
    __syncthreads();
    if (int(threadIdx.x) < half) partial[threadIdx.x] += partial[threadIdx.x + half];
  }
  if (threadIdx.x == 0) sums[blockIdx.y * gridDim.x + blockIdx.x] = partial[0];
}

// Computes the gradient of the sum of all similarities in the image: the slopes, filtered. The window is symmetric.
KERNEL gradient(const int* sizes, const float* constants, const float* image, const float* target, const float* valid,
                const float* slopes, float* d_image) {
  __shared__ float loaded[3][SPAN][SPAN];
  __shared__ float rows[3][SPAN][PATCH];
  const Place place(sizes);
  const Window window(constants);
  for (int c = 0; c < place.channels; ++c) {
    const float* slope = slopes + size_t(c) * place.area();
    const size_t plane = size_t(place.channels) * place.area();
    place.each([&](int r, int q, int pixel) {
#pragma unroll
      for (int j = 0; j < 3; ++j) loaded[j][r][q] = pixel >= 0 ? slope[j * plane + pixel] : 0.0f;
    });
    __syncthreads();
    for (int i = threadIdx.x; i < SPAN * PATCH; i += THREADS) {
      const int r = i / PATCH, q = i % PATCH;
#pragma unroll
      for (int j = 0; j < 3; ++j) {
        float sum = 0.0f;
#pragma unroll
        for (int k = 0; k < WINDOW; ++k) sum = fmaf(window.taps[k], loaded[j][r][q + k], sum);
        rows[j][r][q] = sum;
      }
    }
    __syncthreads();
    if (place.is_inside) {
      const int i = place.pixel() * place.channels + c;
      const float in_x = window.down(rows[0], place.row, place.column);
      const float in_xx = window.down(rows[1], place.row, place.column);
      const float in_xy = window.down(rows[2], place.row, place.column);
      d_image[i] = valid[place.pixel()] != 0.0f ? in_x + 2.0f * image[i] * in_xx + target[i] * in_xy : 0.0f;
    }
  }
}
