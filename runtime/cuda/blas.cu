/* blas.cu: cuBLAS, opened when it is first wanted: it need not be installed. */
#include "runtime/cuda/private.cuh"

#if !defined(FH_EMULATED) && defined(__has_include)
#if __has_include(<cublas_v2.h>)
#define FH_HAVE_CUBLAS
#include <cublas_v2.h>
#include <dlfcn.h>
#endif
#endif

#ifdef FH_HAVE_CUBLAS

typedef cublasStatus_t (*cublas_create)(cublasHandle_t *);
typedef cublasStatus_t (*cublas_destroy)(cublasHandle_t);
typedef cublasStatus_t (*cublas_set_stream)(cublasHandle_t, cudaStream_t);
typedef cublasStatus_t (*cublas_gemm)(cublasHandle_t, cublasOperation_t, cublasOperation_t, int m, int n, int k, const void *alpha, const void *a,
                                      cudaDataType, int lda, const void *b, cudaDataType, int ldb, const void *beta, void *c, cudaDataType, int ldc,
                                      cublasComputeType_t, cublasGemmAlgo_t);

fh_status fh_cuda_blas_open(fh_cuda_device *d, fh_err *err)
{
    static const char *const names[] = {"libcublas.so.13", "libcublas.so.12", "libcublas.so"};
    cublasHandle_t handle = nullptr;
    if (d->blas) return FH_OK;
    for (size_t i = 0; i < 3 && !d->blas_library; i++) d->blas_library = dlopen(names[i], RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
    cublas_create create = d->blas_library ? reinterpret_cast<cublas_create>(dlsym(d->blas_library, "cublasCreate_v2")) : nullptr;
    cublas_set_stream set_stream = d->blas_library ? reinterpret_cast<cublas_set_stream>(dlsym(d->blas_library, "cublasSetStream_v2")) : nullptr;
    d->blas_gemm = d->blas_library ? dlsym(d->blas_library, "cublasGemmEx") : nullptr;
    if (!create || !set_stream || !d->blas_gemm) return d->host->fail(err, FH_ENOTFOUND, "there is no libcublas.so.13 or .12");
    if (create(&handle) != CUBLAS_STATUS_SUCCESS) return d->host->fail(err, FH_EFAIL, "cuBLAS does not start");
    d->blas = handle;
    if (set_stream(handle, d->stream) == CUBLAS_STATUS_SUCCESS) return FH_OK;
    fh_cuda_blas_close(d);
    return d->host->fail(err, FH_EFAIL, "cuBLAS does not start");
}

void fh_cuda_blas_close(fh_cuda_device *d)
{
    cublas_destroy destroy = d->blas ? reinterpret_cast<cublas_destroy>(dlsym(d->blas_library, "cublasDestroy_v2")) : nullptr;
    if (destroy) destroy(static_cast<cublasHandle_t>(d->blas));
    if (d->blas_library) dlclose(d->blas_library);
    d->blas = d->blas_library = d->blas_gemm = nullptr;
}

/* All row-major: for cuBLAS, whose matrices are column-major, W as it lies is [in, out] and is transposed, x is [in, n], and the result [out, n] lies as we
 * want it. */
fh_status fh_cuda_blas(fh_cuda_device *d, const blas_params *p, fh_err *err)
{
    const float one = 1, kept = p->add ? 1 : 0;
    cudaDataType type = p->dtype == FH_F32 ? CUDA_R_32F : CUDA_R_16BF;
    int out = static_cast<int>(p->out), in = static_cast<int>(p->in), n = static_cast<int>(p->n);
    if (reinterpret_cast<cublas_gemm>(d->blas_gemm)(static_cast<cublasHandle_t>(d->blas), CUBLAS_OP_T, CUBLAS_OP_N, out, n, in, &one, p->w, type,
                                                    static_cast<int>(p->ldw),
                                                    p->x, type, static_cast<int>(p->ldx), &kept, p->y, CUDA_R_32F, static_cast<int>(p->ldy), CUBLAS_COMPUTE_32F,
                                                    CUBLAS_GEMM_DEFAULT) != CUBLAS_STATUS_SUCCESS)
        return d->host->fail(err, FH_EFAIL, "cuBLAS does not multiply");
    return FH_OK;
}

#elif defined(FH_EMULATED)

/* In the place of cuBLAS on an emulated device that is said to have it: so that what is done before and after runs. */
static __global__ void product(blas_params p)
{
    uint32_t i = blockIdx.x * blockDim.x + threadIdx.x, o = i % p.out, r = i / p.out;
    if (r >= p.n) return;
    float sum = p.add ? p.y[static_cast<size_t>(r) * p.ldy + o] : 0;
    for (uint32_t k = 0; k < p.in; k++) {
        size_t a = static_cast<size_t>(o) * p.ldw + k, b = static_cast<size_t>(r) * p.ldx + k;
        if (p.dtype == FH_F32) sum = fmaf(static_cast<const float *>(p.w)[a], static_cast<const float *>(p.x)[b], sum);
        else sum = fmaf(__uint_as_float(static_cast<uint32_t>(static_cast<const uint16_t *>(p.w)[a]) << 16),
                        __uint_as_float(static_cast<uint32_t>(static_cast<const uint16_t *>(p.x)[b]) << 16), sum);
    }
    p.y[static_cast<size_t>(r) * p.ldy + o] = sum;
}

fh_status fh_cuda_blas_open(fh_cuda_device *d, fh_err *err)
{
    return emu.blas ? FH_OK : d->host->fail(err, FH_ENOTFOUND, "there is no cuBLAS on an emulated device");
}
void fh_cuda_blas_close(fh_cuda_device *) {}
fh_status fh_cuda_blas(fh_cuda_device *d, const blas_params *p, fh_err *err)
{
    TRY(fh_launch(product, (p->n * p->out + 63) / 64, 64, 0, d->stream, *p, false), "multiplying");
    return FH_OK;
}

#else

fh_status fh_cuda_blas_open(fh_cuda_device *d, fh_err *err) { return d->host->fail(err, FH_ENOTFOUND, "this build knows no cuBLAS"); }
void fh_cuda_blas_close(fh_cuda_device *) {}
fh_status fh_cuda_blas(fh_cuda_device *, const blas_params *, fh_err *) { return FH_OK; }

#endif
