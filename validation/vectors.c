/* A plain-double textbook batch norm against the golden vectors, without a JSON library: one array stands on each line.
 *     cc -std=c99 -O2 -ffp-contract=off validation/vectors.c -lm -o vectors && ./vectors validation/vectors/bn_float32.json
 * Prints each result that it gets wrong, with its test's flags; exit status 1 if there are any. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST = 1024, LINE = 1 << 18 }; /* elements of an array, characters of a line */
enum { X, GAMMA, BETA, DY, INPUTS, Y = INPUTS, MEAN, VAR, INVSTD, DX, DGAMMA, DBETA, ARRAYS };
static const char *const KEYS[ARRAYS] = {"x", "gamma", "beta", "dy", "forward.y", "forward.mean", "forward.var",
    "forward.invstd", "backward.dx", "backward.dgamma", "backward.dbeta"};
static double a[ARRAYS][MOST], value[MOST], bound[MOST];
static char line[LINE], key[64], flags[256], name[256];

/* The function under test: replace it with yours. EACH runs over the elements i of channel c. */
#define EACH for (int i = c * S; i < N * C * S; i += (i + 1) % S ? 1 : 1 + (C - 1) * S)
static void batch_norm(int N, int C, int S, double eps) {
    for (int c = 0; c < C; c++) {
        double m = (double)N * S, sum = 0, square = 0, g = 0, gx = 0;
        EACH sum += a[X][i];
        double mean = m > 0 ? sum / m : 0;
        EACH square += (a[X][i] - mean) * (a[X][i] - mean);
        double var = m > 0 ? square / m : 0, r = 1 / sqrt(var + eps);
        EACH g += a[DY][i], gx += a[DY][i] * ((a[X][i] - mean) * r);
        EACH a[Y][i] = a[GAMMA][c] * ((a[X][i] - mean) * r) + a[BETA][c];
        EACH a[DX][i] = a[GAMMA][c] * r * (a[DY][i] - g / m - (a[X][i] - mean) * r * (gx / m));
        a[MEAN][c] = mean, a[VAR][c] = var, a[INVSTD][c] = r, a[DGAMMA][c] = gx, a[DBETA][c] = g;
    }
}

static int numbers(const char *text, double *out) { /* "0x1p+0 -0x1.8p-3" after the opening quote, up to the closing one */
    int n = 0;
    for (char *end; *text != '"' && n < MOST; text = end + (*end == ' ')) out[n++] = strtod(text, &end);
    return n;
}

static int right(double got, double v, double limit) {
    return isnan(v) ? !isfinite(got) : isinf(v) ? got * v > 0 : fabs(got - v) <= limit;
}

int main(int argc, char **argv) {
    int N = 0, C = 0, S = 0, tests = 0, wrong = 0;
    double eps[MOST];
    FILE *file = argc == 2 ? fopen(argv[1], "r") : NULL;
    while (file && fgets(line, LINE, file)) {
        char *text = strstr(line, "\": ");
        if (!text || sscanf(line, " \"%63[^\"]", key) != 1) continue;
        text += 3;
        tests += !strcmp(key, "id");
        if (!strcmp(key, "flags")) sscanf(text, "[%255[^]]", flags);
        if (!strcmp(key, "case")) sscanf(text, "\"%255[^\"]", name);
        if (!strcmp(key, "shape"))
            for (N = strtol(text + 1, &text, 10), C = strtol(text + 1, &text, 10), S = 1; *text == ',';)
                S *= strtol(text + 1, &text, 10);
        if (!strcmp(key, "eps")) numbers(text + 1, eps);
        for (int k = 0; k < INPUTS; k++) if (!strcmp(key, KEYS[k])) numbers(text + 1, a[k]);
        if (!strcmp(key, "results")) batch_norm(N, C, S, eps[0]);
        for (int k = INPUTS; k < ARRAYS; k++) if (!strcmp(key, KEYS[k])) {
            int n = numbers(strstr(text, "\"value\": \"") + 10, value), fine = 1;
            numbers(strstr(text, "\"bound\": \"") + 10, bound);
            for (int i = 0; i < n; i++) fine &= right(a[k][i], value[i], bound[n == C ? i : i / S % C]);
            if (!fine) wrong++, printf("%s of %s [%s]\n", key, name, flags);
        }
    }
    printf("%d tests, %d results wrong\n", tests, wrong);
    return wrong || !tests;
}
