/* runtime/device_private.h: what the files of a device share. */
#ifndef FH_DEVICE_PRIVATE_H
#define FH_DEVICE_PRIVATE_H

#include "runtime/body_device.h"
#include "runtime/cuda/backend.h"

struct fh_device {
    void *library;
    const fh_cuda_table *cuda;
    fh_cuda_device *device;
    const fh_head *of;
    fh_cuda_head *head;     /* NULL: the head is not there */
    fh_head_device does;
    fh_body *body;          /* whose layers run there; NULL: none */
    fh_cuda_body *layers;
    fh_cuda_clusterer *clusterer;
    fh_cluster_device clusters;
    fh_cuda_multiplier *multiplier;
    fh_dots_device dots;
};

#endif
