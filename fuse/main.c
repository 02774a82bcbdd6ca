/* Pagestone | fuse/main — the program pagestone-fuse.
 * SPDX-License-Identifier: Apache-2.0
 */
#include <stdio.h>

int main(void)
{
    fputs("pagestone-fuse: started by \"pagestone mount\" and by the library\n", stderr);
    return 2;
}
