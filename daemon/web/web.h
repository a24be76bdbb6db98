/* The status page's files, embedded at build time by embed.cmake. */
#ifndef COHORT_DAEMON_WEB_WEB_H
#define COHORT_DAEMON_WEB_WEB_H

#include <stddef.h>

extern const unsigned char web_index_html[], web_app_css[], web_app_js[];
extern const size_t web_index_html_len, web_app_css_len, web_app_js_len;

#endif
