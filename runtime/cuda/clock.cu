/* clock.cu: how long a device takes for what is put into its stream, by its own clock. */
#include "runtime/cuda/private.cuh"

fh_status fh_cuda_clock(fh_cuda_device *d, stopwatch *k, fh_status (*enqueue)(void *ctx, fh_err *err), void *ctx, size_t runs, double *seconds, fh_err *err)
{
    fh_status rc;
    int l2 = 0;
    TRY(cudaDeviceGetAttribute(&l2, cudaDevAttrL2CacheSize, d->ordinal), "asking for its cache");
    size_t flush = fh_max(4 * static_cast<size_t>(l2), 1 << 20);
    TRY(cudaMalloc(&k->flush, flush), "making a clock");
    TRY(cudaEventCreate(&k->begin), "making a clock");
    k->has_begin = true;
    TRY(cudaEventCreate(&k->end), "making a clock");
    k->has_end = true;
    if ((rc = enqueue(ctx, err)) < 0) return rc; /* whatever is loaded or allocated the first time is not for a graph */
    TRY(cudaStreamSynchronize(d->stream), "running it");
    TRY(cudaStreamBeginCapture(d->stream, cudaStreamCaptureModeThreadLocal), "capturing a graph");
    rc = enqueue(ctx, err);
    cudaError_t e = cudaStreamEndCapture(d->stream, &k->graph);
    k->has_graph = e == cudaSuccess;
    if (rc < 0) return rc;
    TRY(e, "capturing a graph");
    TRY(cudaGraphInstantiate(&k->exec, k->graph, 0), "making a graph");
    k->has_exec = true;
    for (size_t i = 0; i < runs; i++) {
        float milliseconds = 0;
        TRY(cudaMemsetAsync(k->flush, static_cast<int>(i % 256), flush, d->stream), "overwriting its cache");
        TRY(cudaEventRecord(k->begin, d->stream), "timing it");
        TRY(cudaGraphLaunch(k->exec, d->stream), "running it");
        TRY(cudaEventRecord(k->end, d->stream), "timing it");
        TRY(cudaStreamSynchronize(d->stream), "running it");
        TRY(cudaEventElapsedTime(&milliseconds, k->begin, k->end), "timing it");
        seconds[i] = 1e-3 * static_cast<double>(milliseconds);
    }
    return FH_OK;
}

void fh_cuda_clock_free(stopwatch *k)
{
    if (k->has_exec) cudaGraphExecDestroy(k->exec);
    if (k->has_graph) cudaGraphDestroy(k->graph);
    if (k->has_begin) cudaEventDestroy(k->begin);
    if (k->has_end) cudaEventDestroy(k->end);
    cudaFree(k->flush);
}
