// One axis of an antialiased resize of 8-bit pictures, in Pillow's integer arithmetic.
//
// in      (outer, size_in, inner) uint8
// out     (outer, size_out, inner) uint8, `count` values
// table   (size_out, 2 + taps) int32: first position of the input, how many positions count, their weights times 2^22
extern "C" __global__ void resample(const unsigned char *in, unsigned char *out, const int *table, int taps,
                                    int size_in, int size_out, int inner, long long count)
{
    long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    if (i >= count)
        return;
    const int *row = table + (i / inner) % size_out * (2 + taps);
    const unsigned char *from = in + (i / inner / size_out * size_in + row[0]) * inner + i % inner;
    int sum = 1 << 21;
    for (int t = 0; t < row[1]; ++t, from += inner)
        sum += row[2 + t] * *from;
    sum >>= 22;
    out[i] = sum < 0 ? 0 : sum > 255 ? 255 : sum;
}
