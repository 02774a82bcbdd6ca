/* Pagestone | txn/pager — reaching the server that pages a store's cold data in.
 * SPDX-License-Identifier: Apache-2.0
 *
 * docs/design/cold.md, section *Bringing a block*. The server is another program (fuse/pager.c); its one file, the image, is mapped by all processes of one user. Nothing here is
 * needed for data to be read: whoever cannot reach a server decompresses.
 *
 *   I1  Nothing waits for a server without a limit: what one process says about its image is checked from what the kernel has cached, and by looking at the server's process.
 *   I2  What is left behind when anybody dies at any moment: nothing. The mount has a name only until its starter has opened the image, or is gone; then it lives as long as somebody has the
 *       image open or mapped.
 */
#ifndef PGS_TXN_PAGER_H
#define PGS_TXN_PAGER_H

#include "libshm/txn/session.h"

/* A descriptor of the image, read only: another process's, found through its slot, or of a server that is started now (some 30 ms; at most 5 s). To be closed by pgs__pager_detach.
 * -PGS_ENOTSUP: there is none to be had; `why` is one line. It is the caller's to remember that. No lock may be held but the caller's own; one call at a time per session. */
int pgs__pager_attach(struct pgs__session *s, char *why, size_t why_len);
void pgs__pager_detach(struct pgs__session *s, int fd);
/* Does the server behind it live still? For who is about to map more of it: cheap, and never asks the server. */
bool pgs__pager_lives(int fd);

/* --- pager_start.c: the process ------------------------------------------------------------------------------------------------- */
/* Start a server for this store: a descriptor of its image, or -PGS_ENOTSUP with `why`. */
int pgs__pager_start(struct pgs__session *s, uint64_t until_ns, char *why, size_t why_len);
/* Path of the program, or false with `why`. */
bool pgs__pager_program(char *path, size_t len, char *why, size_t why_len);

#endif
