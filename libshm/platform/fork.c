/* Pagestone | platform/fork — the three hooks around fork, registered once for the process.
 * SPDX-License-Identifier: Apache-2.0
 *
 * The module that holds this code is never unloaded while hooks are registered (pthread_atfork cannot be undone for a static library), so
 * registration is for good. What the hooks may do: see lock.h.
 */
#include <stdatomic.h>

#include "libshm/platform/lock.h"

int pgs__fork_hooks(void (*prepare)(void), void (*parent)(void), void (*child)(void))
{
    static atomic_bool registered;
    if (atomic_exchange(&registered, true)) return 0;
    if (pthread_atfork(prepare, parent, child) == 0) return 0;
    atomic_store(&registered, false);
    return -PGS_ENOMEM;
}
