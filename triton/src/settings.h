/* The options of a pipeline, from the parameters of a model's config.pbtxt. */
#ifndef BRAID_TRITON_SETTINGS_H
#define BRAID_TRITON_SETTINGS_H

#include "json.h"

struct settings {
    struct arena arena;
    braid_pipeline_options options;
};

/* Reads the parameters: names and meanings are those of braid_pipeline_options. Paths that are not absolute begin at `folder`; several
 * stand on lines of their own. */
TRITONSERVER_Error *settings_read(struct settings *settings, const struct json *config, const char *folder);

#endif
