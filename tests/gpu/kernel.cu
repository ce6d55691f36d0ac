// A kernel of its own for `kit check --kernel`: as PTX alone it is no native code, as SASS of the card it is.
//   nvcc -shared -Xcompiler -fPIC -gencode arch=compute_80,code=compute_80 kernel.cu -o libptx.so      FAIL
//   nvcc -shared -Xcompiler -fPIC -arch=native kernel.cu -o libnative.so                               PASS
__global__ void add(float *x) { x[threadIdx.x] += 1; }

extern "C" int kernel(void) {
    float *x, sum[32], expected = 1;
    int code = cudaMalloc(&x, sizeof sum);
    if (!code) code = cudaMemset(x, 0, sizeof sum);
    if (!code) add<<<1, 32>>>(x), code = cudaGetLastError();
    if (!code) code = cudaMemcpy(sum, x, sizeof sum, cudaMemcpyDeviceToHost);
    cudaFree(x);
    return code ? code : sum[31] == expected ? 0 : cudaErrorUnknown;
}
