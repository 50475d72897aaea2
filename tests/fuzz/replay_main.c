/* tests/fuzz/replay_main.c: runs a fuzz target over files and directories of files, as an ordinary test.
 *
 *     fuzz_json tests/fuzz/corpus/json       every input once, and every input cut short in a few places
 */
#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static size_t inputs;

static int run_file(const char *path)
{
    FILE *f = fopen(path, "rb");
    if (!f) { perror(path); return 1; }
    uint8_t *data = NULL;
    size_t size = 0, room = 0, got = 1;
    while (got) {
        if (size == room) {
            room = room ? 2 * room : 1 << 16;
            uint8_t *grown = realloc(data, room);
            if (!grown) { perror(path); free(data); fclose(f); return 1; }
            data = grown;
        }
        got = fread(data + size, 1, room - size, f);
        size += got;
    }
    fclose(f);
    /* A copy of the exact size each time, so that a sanitizer sees the first byte read past the end. */
    const size_t cuts[] = {size, 0, size / 2, size ? size - 1 : 0};
    for (size_t i = 0; i < sizeof cuts / sizeof *cuts; i++) {
        uint8_t *copy = malloc(cuts[i] ? cuts[i] : 1);
        if (!copy) { perror(path); free(data); return 1; }
        memcpy(copy, data, cuts[i]);
        LLVMFuzzerTestOneInput(copy, cuts[i]);
        free(copy);
    }
    free(data);
    inputs++;
    return 0;
}

static int run_path(const char *path)
{
    struct stat st;
    if (stat(path, &st)) { perror(path); return 1; }
    if (!S_ISDIR(st.st_mode)) return run_file(path);
    struct dirent **names;
    int n = scandir(path, &names, NULL, alphasort), failed = 0;
    if (n < 0) { perror(path); return 1; }
    for (int i = 0; i < n; i++) {
        char file[4096];
        if (names[i]->d_name[0] != '.' && !failed) {
            snprintf(file, sizeof file, "%s/%s", path, names[i]->d_name);
            failed = run_file(file);
        }
        free(names[i]);
    }
    free(names);
    return failed;
}

int main(int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        if (run_path(argv[i])) return 1;
    }
    if (!inputs) {
        fprintf(stderr, "no inputs: name files or directories of them\n");
        return 1;
    }
    printf("ok 1 - %zu inputs\n", inputs);
    return 0;
}
