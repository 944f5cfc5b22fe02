/* A library with one operator, test.ops::Doubled: 2 * x for floats. It is built without
   onnxruntime's headers, so it declares what it uses of the C interface: entries of OrtApi by their
   place in the table, which never changes, and version 8 of OrtCustomOp. */
#include <stddef.h>
#include <stdint.h>

enum {
  CREATE_DOMAIN = 26,
  DOMAIN_ADD = 27,
  ADD_DOMAIN = 28,
  TENSOR_DATA = 51,
  DIMENSION_COUNT = 61,
  DIMENSIONS = 62,
  ELEMENT_COUNT = 64,
  SHAPE_OF = 65,
  CONTEXT_INPUT = 90,
  CONTEXT_OUTPUT = 91
};

typedef const void *const *Api;
typedef struct {
  Api (*api)(uint32_t version);
  const char *(*version)(void);
} ApiBase;
typedef struct Op {
  uint32_t version;
  void *(*create)(const struct Op *, Api, const void *);
  const char *(*name)(const struct Op *);
  const char *(*provider)(const struct Op *);
  int (*input_type)(const struct Op *, size_t);
  size_t (*input_count)(const struct Op *);
  int (*output_type)(const struct Op *, size_t);
  size_t (*output_count)(const struct Op *);
  void (*compute)(void *, void *);
  void (*destroy)(void *);
  int (*input_kind)(const struct Op *, size_t);
  int (*output_kind)(const struct Op *, size_t);
} Op;

static Api api;

static void *create(const Op *op, Api given, const void *info) { return (void *)op; }
static const char *name(const Op *op) { return "Doubled"; }
static const char *provider(const Op *op) { return NULL; }
static int is_float(const Op *op, size_t index) { return 1; }
static size_t one(const Op *op) { return 1; }
static void destroy(void *kernel) {}
static int required(const Op *op, size_t index) { return 0; }

static void compute(void *kernel, void *context) {
  const void *input;
  void *shape, *output;
  float *from, *to;
  int64_t sizes[16];
  size_t rank, count;
  ((void *(*)(const void *, size_t, const void **))api[CONTEXT_INPUT])(context, 0, &input);
  ((void *(*)(const void *, void **))api[SHAPE_OF])(input, &shape);
  ((void *(*)(const void *, size_t *))api[DIMENSION_COUNT])(shape, &rank);
  ((void *(*)(const void *, int64_t *, size_t))api[DIMENSIONS])(shape, sizes, rank);
  ((void *(*)(const void *, size_t *))api[ELEMENT_COUNT])(shape, &count);
  ((void *(*)(void *, size_t, const int64_t *, size_t, void **))api[CONTEXT_OUTPUT])(
      context, 0, sizes, rank, &output);
  ((void *(*)(const void *, void **))api[TENSOR_DATA])(input, (void **)&from);
  ((void *(*)(void *, void **))api[TENSOR_DATA])(output, (void **)&to);
  for (size_t n = 0; n < count; n++) to[n] = 2 * from[n];
}

static const Op doubled = {8,        create, name,    provider, is_float, one,
                           is_float, one,    compute, destroy,  required, required};

void *RegisterCustomOps(void *options, const ApiBase *base) {
  void *domain, *error;
  api = base->api(8);
  error = ((void *(*)(const char *, void **))api[CREATE_DOMAIN])("test.ops", &domain);
  if (error) return error;
  error = ((void *(*)(void *, const Op *))api[DOMAIN_ADD])(domain, &doubled);
  if (error) return error;
  return ((void *(*)(void *, void *))api[ADD_DOMAIN])(options, domain);
}
