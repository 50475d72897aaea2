/* Machines by their makers' published figures: memory bandwidth, and matrix products of 16-bit numbers without sparsity. */
#include "validate/validate.h"

static const fh_machine machines[] = {
    {"NVIDIA H200 SXM", 4800, 989.5, "NVIDIA H200 Tensor Core GPU datasheet, 2024; products: half of the figure with sparsity"},
    {"NVIDIA H100 SXM", 3350, 989.5, "NVIDIA H100 Tensor Core GPU datasheet, 2023; products: half of the figure with sparsity"},
    {"NVIDIA A100 80GB SXM", 2039, 312, "NVIDIA A100 Tensor Core GPU datasheet, 2021"},
    {"NVIDIA GeForce RTX 4090", 1008, 165.2, "NVIDIA Ada GPU architecture whitepaper, 2022, products summed in float32"},
    {"NVIDIA L4", 300, 121, "NVIDIA L4 Tensor Core GPU datasheet, 2023; products: half of the figure with sparsity"},
    {"NVIDIA Jetson Orin Nano Super", 102, 17, "NVIDIA Jetson Orin Nano Super Developer Kit datasheet, 2024"},
    {"Apple M4 Max", 546, 0, "Apple, MacBook Pro technical specifications, 2024 (40-core GPU)"},
    {"Apple M2", 100, 0, "Apple, MacBook Air technical specifications, 2022"},
    {"AMD EPYC 9654, one socket", 460.8, 0, "AMD EPYC 9654 product specifications, 2022: 12 channels of DDR5-4800"},
    {"Raspberry Pi 5", 17.1, 0, "Raspberry Pi 5 product brief, 2023: 32 bits of LPDDR4X-4267"},
};

const fh_machine *fh_machines(size_t *n)
{
    *n = sizeof machines / sizeof *machines;
    return machines;
}
