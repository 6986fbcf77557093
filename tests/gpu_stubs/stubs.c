// What stands in for CUDA's and TensorRT's libraries: allocations are malloc's, there is one GPU, and every other function
// returns 0. FUNCTIONS is written by stubs.py: a definition of each name that a provider library asks for.
#include <stdlib.h>
static long zero(void) { return 0; }
static void *table[256];
static struct { void **v; long pad[64]; } object;  // of any C++ class: each of its virtual functions returns 0
__attribute__((constructor)) static void fill(void)
{
    for (int k = 0; k < 256; k++)
        table[k] = (void *)zero;
    object.v = table;
}
FUNCTIONS
